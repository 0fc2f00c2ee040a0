"""Both families as wholes: shapes, who sees whom, precision, compilation, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer import create_model
from everyformer.papers.feedforward_3d import (
    MultiViewModel,
    PairModel,
    dust3r_512_dpt,
    dust3r_linear,
    multi_tiny,
    pair_tiny,
    vggt_1b,
)

PAIR = {"patch": 4, "dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 4, "decoder_heads": 2}
DPT = {"head": "dpt", "features": 8, "layer_dims": (4, 4, 8, 8), "last": 4}
MULTI = {
    "image_size": 16, "patch": 4, "dim": 16, "depth": 2, "heads": 2, "registers": 1, "encoder_depth": 1,
    "camera_depth": 1, "camera_heads": 2, "features": 8, "layer_dims": (4, 4, 8, 8), "last": 4, "layers": (0, 0, 1, 1),
}  # fmt: skip


def random(model, std=0.15):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 2), patch=st.sampled_from([2, 4]), rows=st.integers(1, 4), columns=st.integers(1, 4),
    dpt=st.booleans(),
)  # fmt: skip
def test_a_pair_of_images_gives_two_pointmaps(batch, patch, rows, columns, dpt):
    model = PairModel(**{**PAIR, **(DPT if dpt else {}), "patch": patch})
    images = [torch.rand(batch, 3, rows * patch, columns * patch) for _ in range(2)]
    for found in model(*images):
        assert found.points.shape == (batch, rows * patch, columns * patch, 3)
        assert found.confidence.shape == (batch, rows * patch, columns * patch)
        assert (found.confidence >= 1).all()


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 2), views=st.integers(1, 3), rows=st.integers(1, 5), columns=st.integers(1, 5),
    encoder=st.integers(0, 1),
)  # fmt: skip
def test_views_give_points_depth_and_cameras(batch, views, rows, columns, encoder):
    model = MultiViewModel(**{**MULTI, "encoder_depth": encoder})
    found = model(torch.rand(batch, views, 3, 4 * rows, 4 * columns))
    shape = (batch, views, 4 * rows, 4 * columns)
    assert found.points.shape == (*shape, 3)
    assert found.depth.shape == found.depth_confidence.shape == found.points_confidence.shape == shape
    assert (found.depth > 0).all()
    assert found.pose_codes.shape == (4, batch, views, 9)
    assert found.extrinsics.shape == (batch, views, 3, 4)
    assert found.intrinsics.shape == (batch, views, 3, 3)
    assert torch.isfinite(found.intrinsics).all()


def test_views_of_different_sizes_make_a_pair():
    model = random(PairModel(**PAIR, **DPT))
    small, large = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 16, 8)
    first, second = model(small, large)
    assert first.points.shape == (2, 8, 12, 3)
    assert second.points.shape == (2, 16, 8, 3)


def test_encoding_once_and_decoding_pairs_is_the_same():
    model = random(PairModel(**PAIR))
    images = torch.rand(3, 3, 8, 8)
    tokens, grid = model.encode(images), model.grid(images)
    edges = torch.tensor([[0, 1], [1, 0], [2, 1]])
    found = model.decode(tokens[edges[:, 0]], tokens[edges[:, 1]], grid, grid)
    for decoded, expected in zip(found, model(images[edges[:, 0]], images[edges[:, 1]]), strict=True):
        torch.testing.assert_close(decoded, expected)


def test_each_image_of_a_pair_changes_both_pointmaps_and_the_sides_differ():
    model = random(PairModel(**PAIR))
    images = [torch.rand(1, 3, 8, 8, requires_grad=True) for _ in range(2)]
    first, second = model(*images)
    for found in (first, second):
        assert all(gradient.any() for gradient in torch.autograd.grad(found.points.sum(), images, retain_graph=True))
    swapped = model(*images[::-1])
    assert not torch.allclose(swapped[1].points, first.points)


def test_the_first_view_is_special_and_the_order_of_the_others_is_not():
    model = random(MultiViewModel(**MULTI), 0.3)
    images = torch.rand(1, 4, 3, 8, 8)
    order = [0, 3, 1, 2]
    found, moved = model(images), model(images[:, order])
    torch.testing.assert_close(moved.points, found.points[:, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.extrinsics, found.extrinsics[:, order], atol=1e-4, rtol=1e-4)
    other = model(images[:, [1, 0, 2, 3]])
    assert not torch.allclose(other.points[:, 0], found.points[:, 1], atol=1e-3)


def test_a_view_sees_all_others():
    model = random(MultiViewModel(**MULTI))
    images = torch.rand(1, 3, 3, 8, 8, requires_grad=True)
    (seen,) = torch.autograd.grad(model(images).depth[:, 1].sum(), images)
    assert seen.flatten(2).any(-1).all()


def test_views_at_a_time_do_not_matter():
    model = random(MultiViewModel(**MULTI))
    images = torch.rand(1, 5, 3, 8, 8)
    model.head_views = None
    whole = model(images)
    model.head_views = 2
    torch.testing.assert_close(model(images), whole)


@pytest.mark.parametrize("sizes", [{}, DPT])
def test_checkpointed_gradients_are_the_same_for_pairs(sizes):
    model = random(PairModel(**PAIR, **sizes)).train()
    images = torch.rand(2, 1, 3, 8, 8)
    gradients = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        sum(found.points.sum() for found in model(*images)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


def saved_bytes(run):
    """What the forward pass keeps for the backward pass."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(sizes.values())


def test_memory_is_linear_in_views_and_checkpointing_saves_most_of_it():
    plain = MultiViewModel(**{**MULTI, "depth": 8, "encoder_depth": 4, "layers": (1, 3, 5, 7)})
    saving = MultiViewModel(**{**MULTI, "depth": 8, "encoder_depth": 4, "layers": (1, 3, 5, 7)}, checkpointing=True)
    weights = sum(p.untyped_storage().nbytes() for p in plain.parameters())

    def kept(model, views):
        return saved_bytes(lambda: model.mix(torch.rand(1, views, 3, 16, 16))) - weights

    few, many = kept(plain, 4), kept(plain, 16)
    assert many / few == pytest.approx(4, rel=0.1)
    assert kept(saving, 16) + weights < 0.5 * many


def test_published_sizes():
    for build, millions in ((dust3r_linear, 532.34), (dust3r_512_dpt, 571.17), (vggt_1b, 1190.60)):
        with torch.device("meta"):
            model = build()
        assert sum(tensor.numel() for tensor in model.state_dict().values()) / 1e6 == pytest.approx(millions, rel=1e-4)
    assert isinstance(create_model("feedforward_3d_pair_tiny"), PairModel)
    assert isinstance(create_model("feedforward_3d_multi_tiny", camera_depth=1), MultiViewModel)


@pytest.mark.parametrize("build", [pair_tiny, multi_tiny])
def test_the_tiny_ones_take_64_pixels(build):
    model = build().eval()
    with torch.inference_mode():
        if build is pair_tiny:
            first, _ = model(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
        else:
            first = model(torch.rand(1, 2, 3, 64, 64))
    assert torch.isfinite(first.points).all()


SHALLOW = {"depth": 1, "layers": (0, 0, 0, 0)}


def points(network, *images):
    found = network(*images)
    return found[0] if hasattr(found, "depth") else found[1].points


@pytest.mark.parametrize("family", ["pair", "views"])
def test_it_compiles(family):
    if family == "views":
        model, inputs = random(MultiViewModel(**{**MULTI, **SHALLOW})), (torch.rand(1, 2, 3, 8, 8),)
    else:
        model = random(PairModel(**{**PAIR, "decoder_depth": 1}))
        inputs = (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(points(compiled, *inputs), points(model, *inputs))


@pytest.mark.parametrize("family", ["pair", "dpt", "views"])
def test_bf16_is_near_float32(family):
    if family == "views":
        model, inputs = random(MultiViewModel(**MULTI), 0.1), (torch.rand(1, 2, 3, 8, 8),)
    else:
        model = random(PairModel(**PAIR, **(DPT if family == "dpt" else {})), 0.1)
        inputs = (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    expected = points(model, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = points(model, *inputs)
    assert mixed.dtype == torch.float32
    assert (mixed - expected).norm() < 0.05 * expected.norm()
    whole = points(model.bfloat16(), *(image.bfloat16() for image in inputs))
    assert whole.dtype == torch.bfloat16
    assert (whole.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (PairModel, {**PAIR, "head": "tree"}, 'head must be "linear" or "dpt", got \'tree\''),
        (PairModel, {**PAIR, **DPT, "decoder_depth": 2}, "decoder_depth must be at least 4 for head='dpt', got 2"),
        (
            PairModel,
            {**PAIR, "heads": 3},
            "dim must be divisible by 4 x heads for rotary positions, got dim=16 and heads=3",
        ),
        (
            PairModel,
            {**PAIR, "decoder_heads": 3},
            "dim must be divisible by 4 x heads for rotary positions, got dim=16 and heads=3",
        ),
        (MultiViewModel, {**MULTI, "image_size": 15}, "image_size must be divisible by patch, got image_size=15 and"),
        (MultiViewModel, {**MULTI, "layers": (0, 1, 2, 3)}, r"layers must be four numbers in \[0, depth=2\), got \(0,"),
        (MultiViewModel, {**MULTI, "head_views": 0}, "head_views must be at least 1 or None, got 0"),
        (MultiViewModel, {**MULTI, "features": 12}, r"layer_dims and features / 2 must be divisible by 4, got \(4, 4"),
        (MultiViewModel, {**MULTI, "camera_heads": 3}, "dim must be divisible by heads, got dim=32 and heads=3"),
        (
            MultiViewModel,
            {**MULTI, "heads": 8},
            "dim must be divisible by 4 x heads for rotary positions, got dim=16 and heads=8",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_images_that_do_not_fit_are_named():
    pair, views = PairModel(**PAIR), MultiViewModel(**MULTI)
    with pytest.raises(ValueError, match=r"divisible by patch=4, got 8 x 10: resize or pad them to 8 x 12"):
        pair(torch.rand(1, 3, 8, 10), torch.rand(1, 3, 8, 10))
    with pytest.raises(ValueError, match="divisible by patch=4, got 6 x 8"):
        views(torch.rand(1, 2, 3, 6, 8))
    with pytest.raises(ValueError, match=r"as many images in each, got \(2, 3, 8, 8\) and \(1, 3, 8, 8\)"):
        pair(torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"images must be \(batch, 3, height, width\), got \(1, 1, 8, 8\)"):
        pair(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"images must be \(batch, views, 3, height, width\), got \(2, 3, 8, 8\)"):
        views(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"images must be \(batch, views, 3, height, width\), got \(1, 0, 3, 8, 8\)"):
        views(torch.rand(1, 0, 3, 8, 8))
    with pytest.raises(TypeError, match="images must be one tensor, got list: crop or resize"):
        views([torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 12)])
    with pytest.raises(TypeError, match="image2"):
        pair(torch.rand(1, 3, 8, 8))
