import pytest
import torch

from everyformer.lab.measure import count_flops, count_parameters
from everyformer.papers.predformer import model as room
from everyformer.papers.predformer.model import (
    ARRANGEMENTS,
    GatedTransformerBlock,
    PredFormer,
    Stage,
    arranged,
    positions,
    predformer_moving_mnist,
    predformer_taxibj,
    predformer_weatherbench,
)

SMALL = {"patch_size": 4, "dim": 16, "heads": 2, "head_dim": 8, "mlp_scale": 2}
SHAPE = (3, 2, 8, 12)


def small(spec="TSST", **options):
    return PredFormer(SHAPE, spec=spec, **{"layers": 1, **SMALL, **options})


def sees(net):
    """Which tokens (frame, place) the output of frame 0, place 0 depends on."""
    video = torch.randn(1, *SHAPE, requires_grad=True)
    (grad,) = torch.autograd.grad(net(video)[0, 0, :, :4, :4].sum(), video)
    return grad[0].unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((1, 4, 5)).flatten(1) > 0


# Table 1, and the tables of TaxiBJ and WeatherBench: millions of parameters, GMAC.
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_published_sizes_have_the_published_parameters_and_macs(name):
    deep = name in ("full", "fac_st", "fac_ts")
    triplet = name in ("tst", "sts")
    for build, parameters, macs in (
        (predformer_moving_mnist, 25.3, 21.2 if name == "full" else 16.3 if name == "tst" else 16.45),
        (predformer_taxibj, 6.33 if triplet else 8.44, 2.42 if name == "full" else 1.64 if triplet else 2.19),
        (predformer_weatherbench, 3.96 if triplet else 5.27, 17.7 if name == "full" else 6.38 if triplet else 8.5),
    ):
        with torch.device("meta"):
            net = build(name).eval()
            video = torch.zeros(1, *net.in_shape)
        assert count_parameters(net) / 1e6 == pytest.approx(parameters, rel=2e-3)
        assert count_flops(lambda net=net, video=video: net(video)) / 2e9 == pytest.approx(macs, rel=0.02)
        assert len(net.stages[0].blocks) == (1 if not deep else (1 if name == "full" else 0.5) * _blocks(net))


def _blocks(net):
    return sum(len(stage.blocks) for stage in net.stages)


def test_human36m_has_the_published_parameters():
    with torch.device("meta"):
        net = PredFormer((4, 3, 256, 256), spec="TSST", layers=3)
    assert count_parameters(net) / 1e6 == pytest.approx(12.73, rel=1e-3)


def test_a_temporal_stage_sees_a_place_and_a_spatial_one_a_frame():
    seen = sees(small("T"))
    assert seen[:, 0].all() and seen[:, 1:].sum() == 0
    seen = sees(small("S"))
    assert seen[0].all() and seen[1:].sum() == 0


@pytest.mark.parametrize("spec", ["J", "TS", "ST", "TST", "STS", "TSST", "STTS"])
def test_every_arrangement_sees_all(spec):
    assert sees(small(spec)).all()


def test_stages_come_in_the_order_of_the_spec(monkeypatch):
    shapes = []
    monkeypatch.setattr(Stage, "forward", lambda self, x: shapes.append(tuple(x.shape)) or x)
    net = small("TSST", layers=2)
    net(torch.randn(2, *SHAPE))
    time, space = (12, 3, 16), (6, 6, 16)  # (batch places, frames, dim) and (batch frames, places, dim)
    assert shapes == [time, space, space, time] * 2


def test_tokens_that_pass_unchanged_come_out_where_they_went_in(monkeypatch):
    monkeypatch.setattr(Stage, "forward", lambda self, x: x)
    video = torch.randn(2, *SHAPE)
    expected = small("S")
    for spec in ("T", "J", "ST", "STT"):
        net = small(spec)
        net.load_state_dict(expected.state_dict(), strict=False)
        torch.testing.assert_close(net(video), expected(video))
    crossed = small("ST", reorder=False)
    crossed.load_state_dict(expected.state_dict(), strict=False)
    assert not torch.allclose(crossed(video), expected(video))


def test_one_layer_of_deep_stages_is_the_factorised_arrangement():
    assert arranged("fac_ts", 8) == {"spec": "TS", "layers": 1, "depth": 4}
    assert arranged("ts", 8) == {"spec": "TS", "layers": 4, "depth": 1}
    assert arranged("full", 8) == {"spec": "J", "layers": 1, "depth": 8}
    assert arranged("tsst", 8) == {"spec": "TSST", "layers": 2, "depth": 1}
    with pytest.raises(ValueError, match=r"name must be one of full, .*got 'tss'"):
        arranged("tss", 8)
    with pytest.raises(ValueError, match="blocks must be a multiple of the 3 stages of a layer TST, got 8"):
        arranged("tst", 8)


def test_positions_are_sines_and_cosines_of_the_token_number():
    table = positions(50, 6)
    for token, place in ((0, 0), (0, 1), (7, 2), (49, 5)):
        angle = torch.tensor(token / 10_000 ** (2 * (place // 2) / 6))
        torch.testing.assert_close(table[token, place], angle.cos() if place % 2 else angle.sin())
    assert "positions" not in small().state_dict()


def test_prediction_is_cut_or_fed_back():
    net, video = small().eval(), torch.randn(2, *SHAPE)
    first = net(video).detach()
    assert torch.equal(net.predict(video, 2), first[:, :2])
    assert torch.equal(net.predict(video, 8), torch.cat([first, net(first), net(net(first))], 1)[:, :8])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        net.predict(video, 0)


def test_a_sequence_loses_a_whole_branch_and_the_mean_stays():
    block = GatedTransformerBlock(8, heads=1, head_dim=8, hidden=8, drop_path=0.5)
    kept = block._kept(torch.ones(4000, 3, 2))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept == kept[:, :1, :1]).all()
    assert float(kept.mean()) == pytest.approx(1, abs=0.1)
    assert torch.equal(block.eval()._kept(kept), kept)


def test_heads_as_wide_as_the_token_have_no_projection():
    assert isinstance(small(heads=1, head_dim=16).stages[0].blocks[0].attention.out, torch.nn.Identity)


def test_stages_start_small_and_unbiased():
    block = small(dim=64).stages[0].blocks[0]
    assert float(block.mlp.out.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not block.mlp.gate_value.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": ""}, "spec must be a string of the letters T and S, or J alone, got ''"),
        ({"spec": "TSX"}, "got 'TSX'"),
        ({"spec": "TJ"}, "got 'TJ'"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"patch_size": 5}, "height and width must be divisible by patch_size, got 8 x 12 and 5"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_sizes_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_videos_of_another_shape_or_type_are_named():
    net = small()
    with pytest.raises(ValueError, match=r"in_shape must be \(frames, channels, height, width\)"):
        PredFormer((3, 8, 12))
    for shape in ((4, 2, 8, 12), (3, 1, 8, 12), (3, 2, 8, 8)):
        with pytest.raises(ValueError, match=r"video must be \(batch, 3, 2, 8, 12\), got"):
            net(torch.randn(1, *shape))
    with pytest.raises(TypeError, match=r"video must be of a floating type, got torch.int64"):
        net(torch.zeros(1, *SHAPE, dtype=torch.long))


def test_bf16_and_compiling_agree_with_eager():
    net = small("ST").eval()
    video = torch.randn(2, *SHAPE)
    expected = net(video)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(video), expected)
    low = net.to(torch.bfloat16)(video.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, atol=0.1, rtol=0.1)


def test_one_transpose_between_stages_that_differ(monkeypatch):
    count = []
    transpose = torch.Tensor.transpose
    monkeypatch.setattr(room.torch.Tensor, "transpose", lambda *args: count.append(1) or transpose(*args))
    monkeypatch.setattr(Stage, "forward", lambda self, x: x)
    net = small("TSST", layers=2)
    count.clear()
    net(torch.randn(1, *SHAPE))
    assert len(count) == 6  # to places; T|SS|TT|SS|T has four changes; and back to frames
