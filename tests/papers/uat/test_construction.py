import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.papers.uat import (
    TooLarge,
    UniversalTransformer,
    asymmetry,
    construct,
    family,
    hard_partition,
    sup_error,
    untrained,
    widths,
)
from everyformer.papers.uat.error import Part, certified
from everyformer.papers.uat.maps import hard_row, max_min, mean, products
from everyformer.papers.uat.ridge import Ridge
from everyformer.papers.uat.target import target_of


def worst(model, f):
    return max(sup_error(model, f, place) for place in ("grid", "random", "adversarial"))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.floats(0.5, 12),
    st.sampled_from(["absolute", "relative"]),
)
def test_attention_gathers_the_sequence_exactly_at_any_sharpness(tokens, dim, out_dim, sharpness, gather):
    model = UniversalTransformer(tokens, dim, out_dim, 4, gather, dtype=torch.float64)
    model.write_attention(sharpness)
    x = torch.randn(5, tokens, dim, dtype=torch.float64)
    for token in range(tokens):
        expected = x.roll(-token, 1) if gather == "relative" else x
        torch.testing.assert_close(model.gathered(x)[:, token], expected.flatten(1), rtol=1e-10, atol=1e-10)


def test_without_positions_attention_gathers_the_mean():
    model = UniversalTransformer(3, 2, 1, 4, "mean", dtype=torch.float64)
    model.write_attention()
    x = torch.randn(5, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(model.gathered(x), x.mean(1, keepdim=True).expand_as(x))


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (3, 1)])
@pytest.mark.parametrize("index", range(7))
def test_every_map_of_the_family_is_within_the_precision(shape, index):
    item = family(*shape, seed=5)[index]
    for eps in (0.3, 0.1):
        model = construct(item.f, *shape, shape[1], eps, lipschitz=item.lipschitz, refine=True)
        assert worst(model, item.f) <= eps
        if math.prod(shape) <= 2:
            assert model.certificate.kind == "grid"
            assert worst(model, item.f) <= model.certificate.total <= eps
        assert model.width < model.asked_width


def test_the_hard_row_at_the_finest_precision_is_certified_and_narrow():
    model = construct(hard_row, 2, 1, 1, 0.03, lipschitz=3.0, refine=True)
    assert worst(model, hard_row) <= model.certificate.total <= 0.03
    assert model.width < 192_836


@pytest.mark.parametrize("index", range(7))
def test_the_closed_form_keeps_the_bound_it_proves(index):
    item = family(2, 1, seed=3)[index]
    model = construct(item.f, 2, 1, 1, 0.3, lipschitz=item.lipschitz)
    assert model.certificate.kind == "proved"
    assert sup_error(model, item.f, "random", count=2000) <= model.certificate.total <= 0.3
    assert model.width <= model.asked_width


@settings(max_examples=15, deadline=None)
@given(st.floats(-5, 5), st.floats(0.1, 4), st.integers(0, 50))
def test_any_box_will_do(low, side, seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(2, 2, generator=generator, dtype=torch.float64)

    def f(x):
        return torch.sin(x.flatten(1) @ w.to(x.dtype) / side).unflatten(1, x.shape[1:])

    eps, constant = 0.2, float(w.abs().max() / side)
    model = construct(f, 2, 1, 1, eps, lipschitz=constant, refine=True, domain=(low, low + side), dtype=torch.float64)
    assert worst(model, f) <= model.certificate.total <= eps
    x = low + side * torch.rand(200, 2, 1, generator=generator, dtype=torch.float64)
    assert (model(x) - f(x)).abs().max() <= eps


def test_a_box_of_its_own_for_every_token():
    low = torch.tensor([[0.0], [-3.0]])
    high = torch.tensor([[2.0], [-1.0]])
    model = construct(products, 2, 1, 1, 0.3, lipschitz=3.0, refine=True, domain=(low, high))
    assert worst(model, products) <= model.certificate.total <= 0.3


def test_maps_that_turn_with_the_sequence_share_one_network():
    item = family(2, 1, 0)[4]
    model = construct(item.f, 2, 1, 1, 0.03, lipschitz=item.lipschitz, refine=True)
    assert model.gather == "relative"
    assert (model.feed_forward[0].weight[:, 1:3] == 0).all()  # no gate
    assert worst(model, item.f) <= 0.03
    assert construct(mean, 3, 2, 2, 0.03, refine=True).width == 6 + 1


def test_the_certificate_is_a_bound_for_any_network():
    torch.manual_seed(0)
    target = target_of(max_min, 2, 1, 1)
    net = Ridge(torch.randn(9, 2).double(), torch.rand(9).double(), 0.1 * torch.randn(9, 1).double(),
                torch.randn(2, 1).double(), torch.zeros(1).double())  # fmt: skip
    parts = [Part(net, slice(0, 1), 0, 1)]
    x = torch.rand(100_000, 2, dtype=torch.float64)
    true = float((net(x) - target(x)[:, :1]).abs().max())
    seen, bound = certified(target, parts, 1.0, 1.2 * true)
    assert seen <= true * 1.05 and true <= bound <= 1.2 * true
    assert certified(target, parts, 1.0, 0.8 * true)[1] == math.inf


def test_an_estimated_constant_is_marked():
    model = construct(products, 2, 1, 1, 0.1, refine=True)
    assert model.certificate.lipschitz == "estimated"
    assert 1.0 <= model.certificate.constant <= 1.2
    assert construct(products, 2, 1, 1, 0.1, lipschitz=1.0, refine=True).certificate.lipschitz == "given"


def test_without_positions_the_error_is_at_least_half_the_asymmetry():
    gap, pair = asymmetry(hard_row, 2, 1, 1)
    with pytest.warns(UserWarning, match="not equivariant"):
        model = construct(hard_row, 2, 1, 1, 0.1, positions=False)
    assert max(sup_error(model, hard_row, pair), worst(model, hard_row)) >= gap / 2
    assert model.certificate.kind == "sampled" and model.certificate.total > 0.1
    x = torch.rand(4, 2, 1)
    torch.testing.assert_close(model(x.flip(1)), model(x).flip(1))


def test_without_positions_an_equivariant_map_of_two_tokens_is_reached():
    item = family(2, 1, 0)[4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = construct(item.f, 2, 1, 1, 0.1, positions=False)
    assert worst(model, item.f) <= 0.1


def test_sharpening_a_partition_leaves_the_error_at_its_borders():
    errors = [sup_error(hard_partition(hard_row, 2, 1, 1, 8, s), hard_row) for s in (10, 1e3, 1e5)]
    assert errors[2] > 0.1 and errors[2] > 0.8 * errors[1]
    assert sup_error(hard_partition(hard_row, 2, 1, 1, 32, 1e5), hard_row) < 0.5 * errors[2]


def test_a_request_beyond_the_memory_is_refused_with_the_estimate():
    with pytest.raises(TooLarge, match=r"hidden neurons and .* bytes") as refusal:
        construct(hard_row, 3, 1, 1, 0.003, lipschitz=3.0)
    assert refusal.value.width > 1e6 and refusal.value.bytes > 2**30
    with pytest.raises(TooLarge):
        construct(hard_row, 2, 1, 1, 0.03, lipschitz=3.0, memory=2**20)
    with pytest.raises(TooLarge):
        construct(lambda x: torch.sin(40 * x.sum((1, 2), keepdim=True)).expand_as(x).cos(), 4, 1, 1, 1e-4, refine=True,
                  memory=2**22)  # fmt: skip
    with pytest.raises(TooLarge):
        construct(mean, 100_000, 1, 1, 0.1)
    with pytest.raises(TooLarge):
        hard_partition(mean, 8, 2, 2, 10, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, "eps must be"),
        ({"eps": -1.0}, "eps must be"),
        ({"eps": math.nan}, "eps must be"),
        ({"domain": (1.0, 0.0)}, "domain must be a box"),
        ({"domain": (0.0, math.inf)}, "domain must be a box"),
        ({"domain": (torch.zeros(7), 1.0)}, "domain must be"),
        ({"tokens": 0}, "tokens must be"),
        ({"out_dim": 2}, "f must map"),
        ({"f": lambda x: x / 0}, "f must be finite"),
        ({"f": lambda x: 3.0}, "f must map"),
        ({"lipschitz": 0.5}, "f has slope 2.99.* between"),
        ({"lipschitz": -1.0}, "lipschitz must be"),
    ],
)
def test_bad_input_is_named(change, message):
    options = {"f": hard_row, "tokens": 2, "dim": 1, "out_dim": 1, "eps": 0.3, "refine": True, **change}
    with pytest.raises(ValueError, match=message):
        construct(**options)


def test_other_shapes_than_the_models_are_refused():
    model = construct(mean, 2, 1, 1, 0.3, refine=True)
    with pytest.raises(ValueError, match=r"x must be \(batch, 2, 1\)"):
        model(torch.rand(4, 3, 1))
    with pytest.raises(ValueError, match="points must be"):
        sup_error(model, mean, "everywhere")


def test_widths_are_reported_beside_what_the_bound_asks_for():
    table = widths(hard_row, [0.3, 0.1], 2, 1, 1, lipschitz=3.0, refine=True)
    assert list(table) == [0.3, 0.1]
    assert table[0.3][0] < table[0.1][0] and table[0.3][1] < table[0.1][1]


def test_it_is_an_ordinary_module():
    model = construct(hard_row, 2, 1, 1, 0.1, lipschitz=3.0, refine=True)
    assert isinstance(model.attention, nn.MultiheadAttention) and isinstance(model.feed_forward, nn.Sequential)
    x = torch.rand(8, 2, 1)
    again = untrained(model)
    assert (again(x) - hard_row(x)).abs().max() > 0.1
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again(x), model(x))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-4)
    model.train()
    (model(x) - hard_row(x)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_the_layer_loads_into_torchs_own_modules():
    model = construct(hard_row, 2, 1, 1, 0.1, lipschitz=3.0, refine=True)
    stream, heads = model.attention.embed_dim, model.attention.num_heads
    attention = nn.MultiheadAttention(stream, heads, batch_first=True)
    attention.load_state_dict(model.attention.state_dict(), strict=True)
    network = nn.Sequential(nn.Linear(stream, model.width), nn.ReLU(), nn.Linear(model.width, stream))
    network.load_state_dict(model.feed_forward.state_dict(), strict=True)
    x = torch.rand(8, 2, 1)
    h = nn.functional.pad(x, (0, stream - 1)) + model.position
    h = h + attention(h, h, h)[0]
    torch.testing.assert_close((h + network(h))[..., -1:], model(x), atol=1e-5, rtol=1e-5)
