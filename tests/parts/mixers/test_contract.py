"""What every token mixer promises, whatever it is: the tests run over all cards of `everyformer.mixers`."""

import copy

import pytest
import torch

from everyformer import mixers
from everyformer.lab.measure import peak_extra_bytes

CARDS = mixers.cards()
DIM, HEADS, TOKENS, LENGTH = 32, 4, 37, 48

# Sizes at which a few dozen tokens already fill several windows, blocks or chunks.
SMALL = {
    "window": {"window": 5},
    "strided": {"stride": 6},
    "longformer": {"window": 5, "global_tokens": 2},
    "bigbird": {"block": 4, "random_blocks": 2},
    "reformer": {"chunk": 6, "buckets": 4, "rounds": 2},
    "linformer": {"features": 8},
    "nystrom": {"landmarks": 8},
    "performer": {"features": 16, "chunk": 8},
    "linear": {"chunk": 8},
    "sla": {"block": 4},
}


def make(name, causal, length=LENGTH, **options):
    torch.manual_seed(1)
    return mixers.create(name, DIM, heads=HEADS, causal=causal, length=length, **{**SMALL.get(name, {}), **options})


def directions(card):
    return {True: (False, True), False: (False,), "only": (True,)}[card.causal]


def over(*able):
    """All cards that can do what is asked, in each direction they have."""
    return pytest.mark.parametrize(
        ("name", "causal"),
        [
            pytest.param(name, causal, id=f"{name}-{'causal' if causal else 'both_ways'}")
            for name, card in CARDS.items()
            if all(getattr(card, ability) for ability in able)
            for causal in directions(card)
            if causal or able != ("causal",)
        ],
    )


def tokens(batch=2, count=TOKENS, dtype=torch.float32):
    return torch.randn(batch, count, DIM, dtype=dtype, generator=torch.Generator().manual_seed(2))


def padding(*counts):
    """A mask of rows with so many real tokens, the first ones."""
    return torch.arange(TOKENS) < torch.tensor(counts)[:, None]


def with_holes():
    mask = padding(TOKENS, 29)
    mask[0, 3] = mask[0, 17] = mask[1, 8:11] = False
    return mask


@pytest.mark.parametrize("name", CARDS)
def test_the_card_says_what_the_class_can(name):
    card = CARDS[name]
    can = card.kind
    assert (card.causal is not False) == can.can_be_causal
    assert (card.causal == "only") == can.must_be_causal
    assert (card.mask, card.cache, card.any_length) == (can.takes_mask, can.takes_cache, not can.needs_length)


@over()
def test_tokens_are_mixed_and_the_input_is_left_alone(name, causal):
    mixer, x = make(name, causal), tokens()
    before = x.clone()
    y = mixer(x)
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    assert torch.equal(x, before)
    other = x.clone()
    other[:, 0] += 1
    assert not torch.allclose(mixer(other)[:, 1], y[:, 1], atol=1e-5)  # the second token sees the first


@over("causal")
def test_a_causal_mixer_does_not_see_later_tokens(name, causal):
    mixer, x = make(name, causal).double(), tokens(dtype=torch.float64)
    y = mixer(x)
    for first in (1, 2, 7, 18, TOKENS - 1):
        other = x.clone()
        other[:, first:] = torch.randn_like(other[:, first:])
        torch.testing.assert_close(mixer(other)[:, :first], y[:, :first], rtol=1e-8, atol=1e-10)
        assert not torch.allclose(mixer(other)[:, first], y[:, first])


@over("mask")
def test_what_stands_at_masked_tokens_does_not_matter(name, causal):
    mixer, x, mask = make(name, causal).double(), tokens(dtype=torch.float64), with_holes()
    other = torch.where(mask[..., None], x, 10 * torch.randn_like(x))
    got, expected = mixer(other, mask=mask)[mask], mixer(x, mask=mask)[mask]
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(mixer(x)[mask], expected)


@over("mask")
def test_padded_rows_equal_each_row_alone(name, causal):
    mixer, x, counts = make(name, causal).double(), tokens(3, dtype=torch.float64), (TOKENS, 24, 5)
    y = mixer(x, mask=padding(*counts))
    for row, count in enumerate(counts):
        alone = mixer(x[row : row + 1, :count])
        torch.testing.assert_close(y[row : row + 1, :count], alone, rtol=1e-8, atol=1e-10)


@over("mask")
def test_a_tokenizers_mask_of_integers_is_one_of_booleans(name, causal):
    mixer, x, mask = make(name, causal), tokens(), with_holes()
    expected = mixer(x, mask=mask)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert torch.equal(mixer(x, mask=mask.to(dtype)), expected)


@over("mask")
def test_masks_that_could_mean_something_else_are_refused(name, causal):
    mixer, x, mask = make(name, causal), tokens(), with_holes()
    for given, message in (
        (mask.float(), "mask must be a tensor of booleans, or of integers that are 0 or 1, got torch.float32"),
        (mask.tolist(), "mask must be a tensor of booleans, or of integers that are 0 or 1, got list"),
        (-10000 * mask.long(), "mask must be of zeros and ones, got -10000 to 0"),
        (mask[:, :-1], r"mask must be \(2, 37\), got \(2, 36\)"),
    ):
        with pytest.raises(ValueError, match=message):
            mixer(x, mask=given)


@over()
def test_input_that_is_none_is_refused(name, causal):
    mixer = make(name, causal)
    for given, message in (
        (tokens(count=0), r"x must have at least one token, got \(2, 0, 32\)"),
        (tokens().tolist(), r"x must be \(batch, tokens, 32\), got list"),
        (None, r"x must be \(batch, tokens, 32\), got NoneType"),
        (tokens()[0], r"x must be \(batch, tokens, 32\), got \(37, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            mixer(given)


@over()
def test_sizes_that_are_none_are_refused(name, causal):
    for given, message in (
        ({"heads": "4"}, "heads must be an integer, got '4'"),
        ({"heads": 4.0}, "heads must be an integer, got 4.0"),
        ({"heads": None}, "heads must be an integer, got None"),
        ({"dim": "32"}, "dim must be an integer, got '32'"),
        ({"length": "48"}, "length must be an integer, got '48'"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"length": -3}, "length must be at least 1, got -3"),
    ):
        with pytest.raises(ValueError, match=message):
            mixers.create(name, **{"dim": DIM, "heads": HEADS, "causal": causal, "length": LENGTH, **given})


@over()
def test_rows_of_a_batch_do_not_see_each_other(name, causal):
    mixer, x = make(name, causal).double(), tokens(3, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[1:2], mixer(x[1:2]), rtol=1e-8, atol=1e-10)


@over("cache", "causal")
@pytest.mark.parametrize("masked", [False, True])
def test_reading_in_pieces_equals_reading_at_once(name, causal, masked):
    if not causal:
        pytest.skip("a cache is for reading from left to right")
    if masked and not CARDS[name].mask:
        pytest.skip("takes no mask")
    mixer, x = make(name, causal).double(), tokens(dtype=torch.float64)
    mask = with_holes() if masked else None
    expected = mixer(x, mask=mask)
    for sizes in ([1] * TOKENS, [9, 1, 1, 1, 12, 1, 1, 11], [1, 1, 30, 5]):
        cache, pieces, start = {}, [], 0
        for size in sizes:
            part = slice(start, start + size)
            pieces.append(mixer(x[:, part], mask=None if mask is None else mask[:, part], cache=cache))
            start += size
        got = torch.cat(pieces, dim=1)
        real = slice(None) if mask is None else mask
        torch.testing.assert_close(got[real], expected[real], rtol=1e-8, atol=1e-10)


@over("cache", "causal")
def test_a_cache_of_other_rows_is_refused_and_stays_as_it_was(name, causal):
    if not causal:
        pytest.skip("a cache is for reading from left to right")
    mixer, x, cache = make(name, causal), tokens(), {}
    expected = mixer(x)
    mixer(x[:, :20], cache=cache)
    for rows in (1, 3):
        for count in (1, 5):
            with pytest.raises(ValueError, match=f"cache must be of as many rows as x, {rows}, got one of 2"):
                mixer(tokens(rows, count), cache=cache)
    torch.testing.assert_close(mixer(x[:, 20:], cache=cache), expected[:, 20:], rtol=1e-4, atol=1e-5)


@over("cache", "causal")
def test_gradients_find_their_way_through_a_cache(name, causal):
    if not causal:
        pytest.skip("a cache is for reading from left to right")
    mixer, x = make(name, causal).double(), tokens(count=17, dtype=torch.float64)
    weight, found = torch.randn_like(x), []
    for sizes in ([17], [5, 1, 1, 1, 7, 1, 1], [1] * 17):
        given, cache = x.clone().requires_grad_(), {}
        pieces = [mixer(part, cache=cache if len(sizes) > 1 else None) for part in given.split(sizes, dim=1)]
        mixer.zero_grad()
        (torch.cat(pieces, dim=1) * weight).sum().backward()
        found.append([given.grad, *(parameter.grad.clone() for parameter in mixer.parameters())])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-7, atol=1e-9)


@over("any_length")
def test_the_same_weights_take_any_number_of_tokens(name, causal):
    mixer = make(name, causal, length=None)
    for count in (1, 2, 3, 8, TOKENS, 130):
        y = mixer(tokens(count=count))
        assert y.shape == (2, count, DIM) and torch.isfinite(y).all()


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if not card.any_length])
def test_a_length_is_asked_for_and_kept_to(name):
    causal = directions(CARDS[name])[0]
    with pytest.raises(ValueError, match="length must be given"):
        make(name, causal, length=None)
    mixer = make(name, causal)
    for count in (1, 5, LENGTH):
        assert mixer(tokens(count=count)).shape == (2, count, DIM)
    with pytest.raises(ValueError, match=f"at most length {LENGTH} tokens, got {LENGTH + 1}"):
        mixer(tokens(count=LENGTH + 1))


@over()
def test_gradients_reach_the_input_and_every_weight(name, causal):
    mixer, x = make(name, causal), tokens().requires_grad_()
    mask = with_holes() if CARDS[name].mask else None
    y = mixer(x, mask=mask)
    (y if mask is None else y[mask]).square().mean().backward()
    for who, tensor in (("x", x), *mixer.named_parameters()):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all(), who
        assert tensor.grad.abs().sum() > 0, who


@over()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(name, causal, dtype):
    mixer, x = make(name, causal), tokens()
    expected, low = mixer(x), copy.deepcopy(mixer).to(dtype)
    for mask in (None, torch.ones(2, TOKENS, dtype=torch.bool)) if CARDS[name].mask else (None,):
        y = low(x.to(dtype).requires_grad_(), mask=mask)
        assert y.dtype == dtype
        error = (y.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
        # Rounding moves a few of Reformer's tokens to another bucket; all others stay.
        kept = error.quantile(0.75 if name == "reformer" else 1.0)
        assert kept < 0.05, f"relative error {kept:.3f}"
    y.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in low.parameters())


@over()
@pytest.mark.parametrize("masked", [False, True])
def test_it_compiles(name, causal, masked):
    if masked and not CARDS[name].mask:
        pytest.skip("takes no mask")
    mixer, x, mask = make(name, causal), tokens().requires_grad_(), with_holes() if masked else None
    y = torch.compile(mixer, backend="aot_eager", fullgraph=True)(x, mask=mask)
    torch.testing.assert_close(y, mixer(x, mask=mask), rtol=1e-4, atol=1e-5)
    y.sum().backward()


@over("cache", "causal")
def test_it_compiles_with_a_cache(name, causal):
    if not causal:
        pytest.skip("a cache is for reading from left to right")
    mixer, x, caches = make(name, causal), tokens(), ({}, {})
    for cache in caches:
        mixer(x[:, :20], cache=cache)
    y = torch.compile(mixer, backend="aot_eager", fullgraph=True)(x[:, 20:], cache=caches[0])
    torch.testing.assert_close(y, mixer(x[:, 20:], cache=caches[1]), rtol=1e-4, atol=1e-5)


@over()
def test_a_state_dict_makes_the_same_mixer_again(name, causal):
    mixer, x = make(name, causal), tokens()
    torch.manual_seed(7)
    other = mixers.create(name, DIM, heads=HEADS, causal=causal, length=LENGTH, **SMALL.get(name, {}))
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x), mixer(x))


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.pretrained])
def test_weights_of_full_attention_fit(name):
    causal = directions(CARDS[name])[0]
    mixer, full = make(name, causal), mixers.create("full", DIM, heads=HEADS)
    mixer.load_state_dict(full.state_dict())
    assert torch.equal(mixer.qkv.weight, full.qkv.weight) and torch.equal(mixer.out.weight, full.out.weight)


def peaks(name, causal, masked, cached=False):
    """Bytes for 512 and for 2,048 tokens, with the sizes that it has by itself; ``cached``, those of the second half."""
    torch.manual_seed(1)
    mixer, found = mixers.create(name, DIM, heads=HEADS, causal=causal, length=2048), []
    for count in (512, 2048):
        x, mask, cache = tokens(1, count), torch.arange(count)[None] < count - 50 if masked else None, None
        with torch.no_grad():
            if cached:
                cache, half = {}, count // 2
                mixer(x[:, :half], mask=None if mask is None else mask[:, :half], cache=cache)
                x, mask = x[:, half:], None if mask is None else mask[:, half:]
            found.append(peak_extra_bytes(lambda x=x, mask=mask, cache=cache: mixer(x, mask=mask, cache=cache)))
    return found


@over()
@pytest.mark.parametrize("masked", [False, True])
def test_memory_grows_as_the_card_says(name, causal, masked):
    if "n²" in CARDS[name].memory:
        pytest.skip("grows with the square of the tokens")
    if masked and not CARDS[name].mask:
        pytest.skip("takes no mask")
    short, long = peaks(name, causal, masked)
    assert long < 6 * short, (short, long)


@over("cache", "causal")
@pytest.mark.parametrize("masked", [False, True])
def test_memory_of_tokens_after_others_grows_as_the_card_says(name, causal, masked):
    if not causal:
        pytest.skip("a cache is for reading from left to right")
    short, long = peaks(name, causal, masked, cached=True)
    assert long < 6 * short, (short, long)


@over("mask")
def test_gradients_with_a_mask_take_memory_as_the_card_says(name, causal):
    if "n²" in CARDS[name].memory:
        pytest.skip("grows with the square of the tokens")
    torch.manual_seed(1)
    mixer = mixers.create(name, DIM, heads=HEADS, causal=causal, length=2048)
    short, long = (
        peak_extra_bytes(
            lambda count=count: mixer(tokens(1, count), mask=torch.arange(count)[None] < count - 50).sum().backward()
        )
        for count in (512, 2048)
    )
    assert long < 6 * short, (short, long)


@over("causal")
def test_one_direction_is_refused_where_it_cannot_be(name, causal):
    if CARDS[name].causal == "only":
        with pytest.raises(ValueError, match="causal must be True"):
            make(name, False)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if not card.causal])
def test_causal_is_refused_where_every_token_sees_all(name):
    with pytest.raises(ValueError, match="causal must be False"):
        make(name, True)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if not card.mask])
def test_a_mask_is_refused_where_there_is_no_way_to_leave_tokens_out(name):
    with pytest.raises(ValueError, match="mask must be None"):
        make(name, directions(CARDS[name])[0])(tokens(), mask=padding(TOKENS, 20))


@over()
def test_a_cache_is_refused_where_none_is_kept(name, causal):
    if not (causal and CARDS[name].cache):
        with pytest.raises(ValueError, match="cache must be None"):
            make(name, causal)(tokens(), cache={})
