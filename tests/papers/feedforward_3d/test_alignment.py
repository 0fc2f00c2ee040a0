import itertools

import pytest
import torch

from everyformer.lab import scenes
from everyformer.papers.feedforward_3d import cameras, geometry
from everyformer.papers.feedforward_3d.alignment import MEAN_SCALE, Pairs, global_alignment


def pairs_of(views, edges, *, noise=0.0):
    """What a pair model would say of a scene if it were right but for a scale of each pair's own, and noise."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, j in edges:
        scale = 0.5 + 2 * torch.rand((), generator=generator)
        pose = views.extrinsics[0, i]
        points = views.points[0, [i, j]] @ pose[:, :3].T + pose[:, 3]
        made.append(scale * (points + noise * torch.randn(points.shape, generator=generator)))
    points = torch.stack(made)
    return Pairs(torch.tensor(edges), points, torch.full(points.shape[:-1], 10.0))


@pytest.fixture(scope="module")
def views():
    return scenes.views(1, 4, torch.Generator().manual_seed(0), textured=False, size=24)


ALL = list(itertools.permutations(range(4), 2))


def test_right_pairs_are_a_right_scene_from_the_start(views):
    found = global_alignment(pairs_of(views, ALL), steps=0)
    assert geometry.pose_auc(geometry.all_pairs(found.extrinsics), geometry.all_pairs(views.extrinsics)[0], 1.0) > 0.8
    assert torch.allclose(found.intrinsics[:, 0, 0], views.intrinsics[0, :, 0, 0], rtol=1e-2)
    fit = geometry.procrustes(found.points.view(-1, 3), views.points.view(-1, 3))
    assert (fit(found.points.view(-1, 3)) - views.points.view(-1, 3)).norm(dim=-1).median() < 0.02


def test_descent_makes_noisy_pairs_agree(views):
    pairs = pairs_of(views, ALL, noise=0.1)
    before, after = (global_alignment(pairs, steps=steps) for steps in (0, 120))
    assert after.losses[-1] < 0.9 * after.losses[0]

    def error(found):
        fit = geometry.procrustes(found.points.view(-1, 3), views.points.view(-1, 3))
        return float((fit(found.points.view(-1, 3)) - views.points.view(-1, 3)).norm(dim=-1).median())

    assert error(after) < 0.9 * error(before)
    truth = geometry.all_pairs(views.extrinsics)[0]
    assert geometry.pose_auc(geometry.all_pairs(after.extrinsics), truth, 5.0) > 0.5


def test_a_chain_of_pairs_is_enough(views):
    found = global_alignment(pairs_of(views, [(2, 0), (2, 3), (1, 3)]), steps=0)
    truth = geometry.all_pairs(views.extrinsics)[0]
    assert geometry.pose_auc(geometry.all_pairs(found.extrinsics), truth, 2.0) > 0.6


def test_the_scene_keeps_its_size(views):
    pairs = pairs_of(views, ALL, noise=0.02)
    found = global_alignment(pairs, steps=40)
    scales = [
        geometry.procrustes(points.view(-1, 3), found.points[i].view(-1, 3)).scale
        for (i, _), points in zip(pairs.edges, pairs.points[:, 0], strict=True)
    ]
    assert float(torch.stack(scales).log().mean().exp()) == pytest.approx(MEAN_SCALE, rel=0.05)


def test_points_are_their_depth_through_the_camera(views):
    found = global_alignment(pairs_of(views, ALL, noise=0.05), steps=5)
    points = cameras.unproject(found.depth, found.extrinsics, found.intrinsics)
    assert torch.allclose(points, found.points, atol=1e-4)


def test_bad_input_is_named(views):
    with pytest.raises(ValueError, match=r"edges must join all views, got none between \[0, 1\] and \[2, 3\]"):
        global_alignment(pairs_of(views, [(0, 1), (1, 0), (2, 3), (3, 2)]))
    pairs = pairs_of(views, [(0, 1)])
    with pytest.raises(ValueError, match="steps must be"):
        global_alignment(pairs, steps=-1)
    with pytest.raises(ValueError, match="rate above 0"):
        global_alignment(pairs, rate=0)
    with pytest.raises(ValueError, match="two different views"):
        Pairs(torch.tensor([[1, 1]]), pairs.points, pairs.confidence)
    with pytest.raises(ValueError, match="points and confidence"):
        Pairs(pairs.edges, pairs.points, pairs.confidence[:, :1])
    with pytest.raises(ValueError, match=r"edges must be \(edges, 2\)"):
        Pairs(torch.zeros(0, 2, dtype=torch.long), pairs.points[:0], pairs.confidence[:0])
