"""Losses: free of scale, blind to what is not valid, right about a hand-made case."""

import math

import pytest
import torch

from everyformer.papers.feedforward_3d import (
    Pointmap,
    Reconstruction,
    multiview_loss,
    pair_loss,
    pose_encode,
    unproject,
)
from everyformer.papers.feedforward_3d.cameras import rotation
from everyformer.papers.feedforward_3d.losses import normalise_scene, scale_shift_error

SIZE = (8, 8)


def maps(seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    points = [torch.randn(batch, *SIZE, 3, generator=generator) + torch.tensor([0, 0, 4.0]) for _ in range(2)]
    sure = [1 + torch.rand(batch, *SIZE, generator=generator) for _ in range(2)]
    return points, sure


def test_a_scaled_copy_costs_only_what_confidence_earns():
    points, sure = maps()
    first, second = (Pointmap(7 * p, c) for p, c in zip(points, sure, strict=True))
    expected = -0.2 * (sure[0].log().mean() + sure[1].log().mean())
    torch.testing.assert_close(pair_loss(first, second, *points), expected, atol=1e-5, rtol=1e-5)
    assert float(scale_shift_error(first, second, *points)) == pytest.approx(0, abs=1e-4)


def test_the_loss_is_that_of_a_loop_over_pixels():
    (x1, x2), (c1, c2) = maps(1, batch=1)
    (y1, y2), _ = maps(2, batch=1)
    valid1, valid2 = torch.rand(1, *SIZE) > 0.4, torch.rand(1, *SIZE) > 0.4

    def scale(a, b):
        lengths = [p.norm() for p in (*a[valid1], *b[valid2])]
        return sum(lengths) / len(lengths)

    s, t, total = scale(x1, x2), scale(y1, y2), 0.0
    for x, y, c, valid in ((x1, y1, c1, valid1), (x2, y2, c2, valid2)):
        terms = [
            ci * (xi / s - yi / t).norm() - 0.3 * ci.log()
            for xi, yi, ci in zip(x[valid], y[valid], c[valid], strict=True)
        ]
        total += sum(terms) / len(terms)
    found = pair_loss(Pointmap(x1, c1), Pointmap(x2, c2), y1, y2, valid1, valid2, alpha=0.3)
    torch.testing.assert_close(found, total, atol=1e-5, rtol=1e-5)


def test_pixels_without_truth_do_not_matter_even_if_they_are_nan():
    points, sure = maps()
    first, second = (Pointmap(p.clone().requires_grad_(), c) for p, c in zip(maps(3)[0], sure, strict=True))
    valid = torch.rand(2, *SIZE) > 0.3
    clean = pair_loss(first, second, *points, valid, valid)
    dirty = [torch.where(valid[..., None], p, torch.nan) for p in points]
    loss = pair_loss(first, second, *dirty, valid, valid)
    torch.testing.assert_close(loss, clean)
    torch.testing.assert_close(scale_shift_error(first, second, *dirty, valid, valid),
                               scale_shift_error(first, second, *points, valid, valid))  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, first.points)
    assert torch.isfinite(gradient).all()
    assert not gradient[~valid].any()


def test_the_best_confidence_of_an_error_is_alpha_over_it():
    points, sure = maps()
    wrong = maps(4)[0]
    free = [torch.full_like(c, 0.5).requires_grad_() for c in sure]
    optimiser = torch.optim.Adam(free, lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        pair_loss(*(Pointmap(p, c) for p, c in zip(wrong, free, strict=True)), *points).backward()
        optimiser.step()
    error = (wrong[0] / mean_length(wrong) - points[0] / mean_length(points)).norm(dim=-1)
    torch.testing.assert_close(free[0].detach(), 0.2 / error, rtol=0.05, atol=0.02)


def mean_length(clouds):
    return torch.stack(clouds).norm(dim=-1).mean((0, 2, 3))[:, None, None, None]


def test_a_mask_without_pixels_counts_zero_with_a_warning():
    points, sure = maps()
    first, second = (Pointmap(p.clone().requires_grad_(), c) for p, c in zip(maps(3)[0], sure, strict=True))
    none = torch.zeros(2, *SIZE, dtype=torch.bool)
    with (
        pytest.warns(UserWarning, match="valid1 has no pixel: the view counts zero"),
        pytest.warns(UserWarning, match="valid2 has no pixel"),
    ):
        loss = pair_loss(first, second, *points, none, none)
    assert loss == 0
    loss.backward()
    assert not first.points.grad.any()


def test_a_shift_along_the_axis_is_no_error_of_the_test():
    points, sure = maps()
    first, second = (Pointmap(3 * (p + torch.tensor([0, 0, 2.0])), c) for p, c in zip(points, sure, strict=True))
    assert float(scale_shift_error(first, second, *points)) == pytest.approx(0, abs=1e-4)
    assert float(pair_loss(first, second, *points)) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points2": torch.zeros(2, 4, 4, 3)}, r"points2 must have shape \(2, 8, 8, 3\), got \(2, 4, 4, 3\)"),
        ({"valid1": torch.ones(2, 8, 8)}, r"valid1 must be boolean of shape \(2, 8, 8\), got torch.float32"),
        ({"alpha": 0.0}, "alpha must be positive, got 0.0"),
    ],
)
def test_bad_pairs_are_named(change, message):
    points, sure = maps()
    first, second = (Pointmap(p, c) for p, c in zip(points, sure, strict=True))
    with pytest.raises(ValueError, match=message):
        pair_loss(first, second, **{"points1": points[0], "points2": points[1], **change})


def scene(views=3, seed=0, scale=1.0):
    """Views of random depth in a world of its own: the truth, and what a perfect model would give."""
    torch.manual_seed(seed)
    depth = scale * (1 + torch.rand(1, views, *SIZE))
    extrinsics = torch.cat([rotation(torch.randn(1, views, 4)), scale * torch.randn(1, views, 3, 1)], -1)
    intrinsics = torch.tensor([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]).expand(1, views, 3, 3)
    points = unproject(depth, extrinsics, intrinsics)
    truth = {"depth": depth, "points": points, "extrinsics": extrinsics, "intrinsics": intrinsics}
    valid = torch.ones_like(depth, dtype=torch.bool)
    learnt = normalise_scene(depth, points, extrinsics, valid)
    codes = pose_encode(learnt.extrinsics, intrinsics, SIZE)
    sure = torch.ones_like(depth)
    perfect = Reconstruction(
        learnt.points, sure, learnt.depth, sure, codes.expand(4, *codes.shape), learnt.extrinsics, intrinsics
    )
    return truth, perfect


def test_a_normal_scene_is_seen_from_its_first_camera_at_a_mean_distance_of_one():
    truth, _ = scene(scale=5.0)
    found = normalise_scene(truth["depth"], truth["points"], truth["extrinsics"], truth["depth"] > 0)
    torch.testing.assert_close(found.extrinsics[0, 0], torch.eye(4)[:3], atol=1e-5, rtol=0)
    assert float(found.points.norm(dim=-1).mean()) == pytest.approx(1, abs=1e-5)
    again = unproject(found.depth, found.extrinsics, truth["intrinsics"])
    torch.testing.assert_close(again, found.points, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_perfect_answer_costs_nothing_in_any_unit(scale):
    truth, perfect = scene(scale=scale)
    loss = multiview_loss(perfect, **truth, points_weight=1.0)
    for part in loss:
        assert float(part) == pytest.approx(0, abs=2e-4)


def test_refinements_count_more_the_later_they_are():
    truth, perfect = scene()
    parts = []
    for refinement in range(4):
        codes = perfect.pose_codes.clone()
        codes[refinement, ..., 3:7] += 0.1
        parts.append(float(multiview_loss(perfect._replace(pose_codes=codes), **truth).camera))
    expected = [0.1 / 4 * 0.6 ** (3 - k) for k in range(4)]
    assert parts == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_plain_and_weighed_errors_of_a_constant_offset():
    truth, perfect = scene()
    sure = torch.full_like(perfect.depth, 2.0)
    wrong = perfect._replace(depth=perfect.depth + 0.5, depth_confidence=sure)
    slopes = -0.2 * math.log(4.0)  # the offset is the same everywhere: only the confidence of differences is left
    pairs = [2 * k * (k - 1) / k**2 for k in (8, 4, 2, 1)]
    expected = 2 * 0.5 - 0.2 * math.log(2.0) + 0.5 + slopes * sum(pairs) / 4
    assert float(multiview_loss(wrong, **truth).depth) == pytest.approx(expected, abs=1e-4)


def test_the_worst_pixels_are_dropped():
    truth, perfect = scene()
    wrong = perfect.depth.clone()
    wrong[0, 0, 0, 0] += 1e3
    assert float(multiview_loss(perfect._replace(depth=wrong), **truth).depth) < 10  # slopes are cut at 100
    wrong[0, 0] += 1e3
    assert float(multiview_loss(perfect._replace(depth=wrong), **truth).depth) > 300


def test_points_count_only_with_a_weight_and_normals_see_a_bend():
    truth, perfect = scene()
    bent = perfect._replace(points=perfect.points * torch.tensor([1.0, 1.0, -1.0]))
    assert multiview_loss(bent, **truth).points == 0
    found = multiview_loss(bent, **truth, points_weight=0.5)
    assert float(found.points) > 1
    torch.testing.assert_close(found.total, 5 * found.camera + found.depth + 0.5 * found.points)


def test_views_without_truth_count_zero_with_a_warning_and_nan_does_not_leak():
    truth, perfect = scene()
    depth = perfect.depth.clone().requires_grad_()
    found = perfect._replace(depth=depth)
    none = torch.zeros_like(depth, dtype=torch.bool)
    with pytest.warns(UserWarning, match="valid has no pixel: depth and points count zero"):
        loss = multiview_loss(found, **truth, valid=none, points_weight=1.0)
    assert loss.depth == loss.points == 0
    some = torch.rand_like(depth) > 0.3
    dirty = {**truth, "points": torch.where(some[..., None], truth["points"], torch.nan)}
    dirty["depth"] = torch.where(some, truth["depth"], torch.nan)
    loss = multiview_loss(found, **dirty, valid=some, points_weight=1.0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(depth.grad).all()


def test_bad_truth_is_named():
    truth, perfect = scene()
    with pytest.raises(ValueError, match=r"depth must have shape \(1, 3, 8, 8\), got \(1, 2, 8, 8\)"):
        multiview_loss(perfect, **{**truth, "depth": truth["depth"][:, :2]})
    with pytest.raises(ValueError, match=r"valid must be boolean of shape \(1, 3, 8, 8\), got torch.float32"):
        multiview_loss(perfect, **truth, valid=torch.ones(1, 3, 8, 8))
    with pytest.raises(ValueError, match="must be rotations"):
        multiview_loss(perfect, **{**truth, "extrinsics": 2 * truth["extrinsics"]})
