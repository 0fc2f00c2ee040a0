import pytest
import torch

from everyformer import mixers

DIM, HEADS = 32, 4
WIDE = {
    "window": {"window": 30},
    "strided": {"stride": 30},
    "longformer": {"window": 30, "global_tokens": 3},
    "bigbird": {"block": 30},
}


def of_full(name, causal, **options):
    """A mixer and a full attention with its weights."""
    full = mixers.create("full", DIM, heads=HEADS, causal=causal).double()
    mixer = mixers.create(name, DIM, heads=HEADS, causal=causal, **options).double()
    mixer.load_state_dict(full.state_dict())
    return mixer, full


def seen(mixer, tokens=24):
    """Which token sees which, by the gradients of outputs to inputs."""
    x = torch.randn(1, tokens, DIM, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x).sum(dim=-1)[0], x)
    return jacobian[:, 0].abs().sum(dim=-1) > 1e-12


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["window", "longformer", "bigbird"])
def test_windows_over_all_tokens_are_full_attention(name, causal):
    mixer, full = of_full(name, causal, **WIDE[name])
    x = torch.randn(2, 30, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), full(x))


def test_a_stride_of_one_or_of_all_tokens_makes_half_of_the_heads_full_attention():
    x = torch.randn(2, 30, DIM, dtype=torch.float64)
    for causal in (False, True):
        for stride, half in ((30, slice(0, 2)), (1, slice(2, 4))):
            mixer, full = of_full("strided", causal, stride=stride)
            for module in (mixer, full):
                kept = torch.zeros(DIM, dtype=torch.float64).unflatten(0, (HEADS, -1))
                kept[half] = 1
                module.out.weight.data *= kept.flatten()
            torch.testing.assert_close(mixer(x), full(x))


def test_global_tokens_everywhere_are_full_attention():
    x = torch.randn(2, 30, DIM, dtype=torch.float64)
    mixer, full = of_full("longformer", False, window=1, global_tokens=30)
    torch.testing.assert_close(mixer(x), full(x))
    mixer, full = of_full("bigbird", False, block=5, global_blocks=6, random_blocks=0)
    torch.testing.assert_close(mixer(x), full(x))


def apart(tokens=24):
    place = torch.arange(tokens)
    return place[:, None] - place


def test_a_window_is_what_is_seen():
    near = seen(mixers.create("window", DIM, window=5).double())
    assert torch.equal(near, apart().abs() < 5)
    near = seen(mixers.create("window", DIM, window=5, causal=True).double())
    assert torch.equal(near, (apart() >= 0) & (apart() < 5))


def test_a_stride_is_what_is_seen():
    pattern = (apart().abs() < 5) | (apart() % 5 == 0)
    assert torch.equal(seen(mixers.create("strided", DIM, stride=5).double()), pattern)
    assert torch.equal(seen(mixers.create("strided", DIM, stride=5, causal=True).double()), pattern & (apart() >= 0))


def test_the_stride_is_the_root_of_the_length():
    assert mixers.create("strided", DIM, length=1000).stride == 32
    assert mixers.create("strided", DIM).stride == 64


def test_global_tokens_see_and_are_seen():
    pattern = apart().abs() < 3
    pattern[:2] = pattern[:, :2] = True
    mixer = mixers.create("longformer", DIM, window=3, global_tokens=2)
    assert torch.equal(seen(mixer.double()), pattern)
    mixer = mixers.create("longformer", DIM, window=3, global_tokens=2, causal=True)
    assert torch.equal(seen(mixer.double()), pattern & (apart() >= 0))


def test_global_tokens_have_projections_of_their_own():
    x = torch.randn(1, 24, DIM)
    mixer = mixers.create("longformer", DIM, window=3, global_tokens=2)
    before = mixer(x)
    mixer.global_qkv.weight.data.normal_()
    changed = (mixer(x) != before).any(dim=-1)[0]
    assert changed[:2].all() and not changed[2:].any()


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_see_the_first_their_neighbours_and_some_at_random(causal):
    mixer = mixers.create("bigbird", DIM, causal=causal, block=2, random_blocks=2)
    blocks = seen(mixer.double(), 64).view(32, 2, 32, 2).any(dim=3).any(dim=1)
    distance = apart(32)
    fixed = (distance.abs() < 2) | (torch.arange(32) == 0)
    if causal:
        fixed &= distance >= 0
        assert not blocks[distance < 0].any()
    else:
        assert blocks[0].all()
    assert blocks[fixed].all()
    others = (blocks & ~fixed)[1:].sum(dim=1)
    assert others.max() == 2 and others.float().mean() > 1  # fewer where chance meets the fixed ones
    assert (blocks & ~fixed)[1:].any(dim=0).sum() > 10  # they are not the same ones for all


def test_random_blocks_depend_on_the_seed_alone():
    real = torch.ones(1, 640, dtype=torch.bool)
    tables = [mixers.create("bigbird", DIM, block=8, seed=seed).seen(real) for seed in (3, 3, 4)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert (tables[0] == 0).sum(dim=-1).eq(1).all()  # no block twice


def test_random_blocks_are_spread_evenly():
    mixer = mixers.create("bigbird", DIM, block=1, random_blocks=8)
    chance = mixer._chance(512, torch.device("cpu")).flatten()
    assert chance.min() >= 0 and chance.max() < 1
    counts = torch.histc(chance, bins=16, min=0, max=1)
    assert (counts / 256 - 1).abs().max() < 0.3
    assert torch.corrcoef(torch.stack([chance[:-1], chance[1:]]))[0, 1].abs() < 0.05


def test_a_ring_holds_no_more_than_a_window():
    mixer, cache = mixers.create("window", DIM, window=5, causal=True), {}
    with torch.no_grad():
        for count in (3, 1, 9, 1):
            mixer(torch.randn(2, count, DIM), cache=cache)
    assert cache["keys"].shape == (2, 5, HEADS, DIM // HEADS) and cache["tokens"] == 14


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("window", {"window": 0}, "window must be at least 1, got 0"),
        ("strided", {"stride": 0}, "stride must be at least 1, got 0"),
        ("strided", {"heads": 1}, "heads must be at least 2"),
        ("longformer", {"window": 0}, "window and global_tokens must be at least 1, got 0 and 1"),
        ("longformer", {"global_tokens": 0}, "window and global_tokens must be at least 1, got 128 and 0"),
        ("bigbird", {"block": 0}, "block must be at least 1"),
        ("bigbird", {"random_blocks": -1}, "random_blocks at least 0, got 64, 1 and -1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        mixers.create(name, DIM, **options)
