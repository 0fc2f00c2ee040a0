import math

import pytest
import torch
import torch.nn.functional as F

from everyformer.papers.ts_survey import Autoformer, FEDformerLite, Informer, PatchTST, create
from everyformer.papers.ts_survey.attention import log_sparse_attention, lsh_attention
from everyformer.papers.ts_survey.autoformer import auto_correlation
from everyformer.papers.ts_survey.model import MODELS, Distil
from everyformer.parts.series_layers import TimeEmbedding

SIZES = {"dim": 8, "heads": 2, "ff": 12, "marks": 2, "dropout": 0.0}
RANDOM = ("informer", "reformer")  # their attention draws


def built(name, lookback=48, horizon=8, **options):
    torch.manual_seed(0)
    return create(name, lookback, horizon, 3, **{**SIZES, **options})


def inputs(batch=2, lookback=48, horizon=8, kind=torch.float32):
    return [torch.randn(batch, *shape).to(kind) for shape in ((lookback, 3), (lookback, 2), (horizon, 2))]


@pytest.mark.parametrize("name", MODELS)
def test_all_take_the_same_inputs_and_every_weight_learns(name):
    model, given = built(name, layers=3), inputs()
    given[0].requires_grad_()
    out = model(*given)
    assert out.shape == (2, 8, 3)
    out.square().sum().backward()
    assert given[0].grad.abs().sum() > 0
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", MODELS)
def test_all_reload_strictly_and_run_in_bfloat16(name):
    model, given = built(name), inputs(kind=torch.bfloat16)
    again = built(name)
    again.load_state_dict(model.state_dict(), strict=True)
    torch.manual_seed(1)
    low = model.bfloat16().eval()(*given)
    assert low.dtype == torch.bfloat16
    assert low.isfinite().all()
    if name not in (*RANDOM, "autoformer"):  # Autoformer may choose another delay
        whole = again.eval()(*(x.float() for x in given))
        torch.testing.assert_close(low.float(), whole, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("name", ["autoformer", "patchtst"])
def test_they_compile(name):
    model, given = built(name, layers=1).eval(), inputs()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), model(*given), atol=1e-5, rtol=1e-4)


def test_auto_correlation_finds_the_delay_and_rolls_back_by_it():
    wave = torch.randn(1, 24, 4)
    early = wave.roll(-5, dims=1)
    out = auto_correlation(wave * 100, early, wave, factor=1)  # a sharp softmax: one delay has all the weight
    torch.testing.assert_close(out, early, atol=1e-4, rtol=1e-4)


def test_auto_correlation_is_a_weighted_sum_of_rolled_values():
    query, key, value = torch.randn(3, 2, 20, 4)
    scores = torch.stack([(query * key.roll(delay, 1)).sum(1).mean(-1) for delay in range(20)], dim=-1)
    for shared in (False, True):
        chosen = (scores.mean(0, keepdim=True) if shared else scores).topk(int(math.log(20) * 2)).indices.expand(2, -1)
        weights = scores.gather(1, chosen).softmax(-1)
        wanted = torch.stack(
            [sum(w * value[i].roll(-int(d), 0) for w, d in zip(weights[i], chosen[i], strict=True)) for i in range(2)]
        )
        torch.testing.assert_close(auto_correlation(query, key, value, 2, shared), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [12, 28])
def test_auto_correlation_pads_or_cuts_keys_to_the_queries(steps):
    query, key = torch.randn(2, 20, 4), torch.randn(2, steps, 4)
    fitted = F.pad(key, (0, 0, 0, max(0, 20 - steps)))[:, :20]
    torch.testing.assert_close(auto_correlation(query, key, key), auto_correlation(query, fitted, fitted))


def test_log_sparse_attention_is_softmax_over_exponential_steps():
    query, key, value = torch.randn(3, 2, 2, 21, 4)
    back = torch.arange(21)[:, None] - torch.arange(21)
    allowed = torch.isin(back, torch.tensor([0, 1, 2, 4, 8, 16]))
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    torch.testing.assert_close(log_sparse_attention(query, key, value), wanted, atol=1e-5, rtol=1e-4)
    assert log_sparse_attention(*(x[:, :, :1] for x in (query, key, value))).shape == (2, 2, 1, 4)


def test_hashing_with_two_buckets_is_full_attention_without_oneself():
    query, value = torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 5)
    scores = query @ F.normalize(query, dim=-1).transpose(-2, -1) / 2
    wanted = scores.masked_fill(torch.eye(8, dtype=torch.bool), -5e4).softmax(-1) @ value
    torch.testing.assert_close(lsh_attention(query, value, bucket=4, hashes=3), wanted, atol=1e-5, rtol=1e-4)


def test_hashing_lets_like_tokens_meet():
    torch.manual_seed(3)
    kinds = F.normalize(torch.randn(4, 16), dim=-1) * 20
    which = torch.arange(64) % 4
    value = F.one_hot(which, 4).float()[None, None]
    out = lsh_attention(kinds[which][None, None], value, bucket=16, hashes=4)
    assert (out.argmax(-1)[0, 0] == which).float().mean() > 0.95


def test_distilling_halves_and_adds_one():
    assert Distil(4).eval()(torch.randn(2, 32, 4)).shape == (2, 17, 4)
    assert [layer.conv.kernel_size for layer in built("informer", layers=4).encoder.distil] == [(3,)] * 3


def test_without_decomposition_there_is_no_trend_path():
    plain = built("autoformer", decomposition=False)
    assert plain.decomposition is None
    assert not any("trends" in key for key in plain.state_dict())
    assert plain(*inputs()).shape == (2, 8, 3)


def test_autoformer_carries_the_level_of_a_window():
    model, (x, marks, future) = built("autoformer").eval(), inputs()
    shifted = model(x + 50, marks, future) - model(x, marks, future)
    assert (shifted.mean() - 50).abs() < 15  # the trend path carries it; embeddings see it too


def test_an_embedding_without_position_codes_does_not_know_the_order():
    embed = TimeEmbedding(3, 8, 0, None, 0.0)
    x = torch.randn(2, 10, 3)
    torch.testing.assert_close(embed(x.roll(3, 1), None), embed(x, None).roll(3, 1))
    placed = TimeEmbedding(3, 8, 0, 10, 0.0)
    assert (placed(x.roll(3, 1), None) - placed(x, None).roll(3, 1)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: built("rnn"), "name must be one of vanilla.*got 'rnn'"),
        (lambda: Autoformer(32, 8, 3, dim=8, ff=8, label=40), r"label must be in \[0, lookback=32\], got 40"),
        (lambda: Autoformer(32, 8, 3, dim=8, ff=8, label=8), "kernel must be at most lookback=32 and label . horizon"),
        (lambda: Autoformer(32, 8, 3, dim=8, ff=8, label=20, kernel=4), "kernel must be odd"),
        (lambda: Autoformer(32, 8, 3, dim=8, ff=8, label=20, factor=0), "factor must be at least 1"),
        (lambda: Autoformer(32, 8, 3, dim=8, ff=8, label=20, activation="x"), "activation must be one of"),
        (lambda: FEDformerLite(32, 8, 3, dim=8, heads=3, ff=8, label=20), "dim must be a multiple of heads"),
        (lambda: Informer(32, 8, 3, dim=8, heads=2, ff=8, label=16, factor=0), "factor must be at least 1"),
        (lambda: Informer(32, 8, 3, dim=8, heads=2, ff=8, label=33), "label must be in"),
        (lambda: PatchTST(12, 8, dim=8, heads=2, ff=8), "patch must be at most lookback=12, got 16"),
        (lambda: built("dlinear", lookback=24), "kernel must be at most lookback=24, got 25"),
        (lambda: built("logsparse", layers=0), "layers must be at least 1"),
        (lambda: built("vanilla", heads=3), "dim must be a multiple of heads"),
        (lambda: lsh_attention(torch.randn(1, 1, 12, 4), torch.randn(1, 1, 12, 4)), "tokens must be a multiple of"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", MODELS)
def test_inputs_that_do_not_fit_are_named(name):
    x, marks, future = inputs()
    with pytest.raises(ValueError, match=r"series must have shape \(batch, 48, variates\), got \(2, 47, 3\)"):
        built(name)(x[:, 1:], marks, future)
    if name not in ("dlinear", "patchtst"):
        with pytest.raises(ValueError, match="marks must have shape"):
            built(name)(x, marks[:, 1:], future)
    if name not in ("dlinear", "patchtst", "itransformer"):
        with pytest.raises(ValueError, match="variates"):
            built(name)(x[..., :2], marks, future)
