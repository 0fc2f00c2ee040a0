import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.icl_gd import regression_tasks, regression_tokens, sine_tasks, token_sequence

SEED = torch.Generator


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(6, 12),
    st.sampled_from(["uniform", "exponential", "normal", "laplace", "mixed"]),
)  # fmt: skip
def test_tasks_are_linear_without_noise_and_hide_the_querys_y(batch, dim_x, dim_y, context, law):
    tokens, target = regression_tasks(batch, dim_x, dim_y, context, law=law)
    assert tokens.shape == (batch, context + 1, dim_x + dim_y) and target.shape == (batch, dim_y)
    x, y = tokens[:, :-1, :dim_x].double(), tokens[:, :-1, dim_x:].double()
    weight = torch.linalg.pinv(x) @ y
    torch.testing.assert_close(x @ weight, y, atol=1e-4, rtol=1e-4)
    assert (tokens[:, -1, dim_x:] == 0).all()


def test_the_uniform_law_has_the_moments_of_the_closed_form():
    x = regression_tasks(5000, input_range=2.0, generator=SEED().manual_seed(0)).tokens[..., :-1]
    assert x.abs().max() <= 1
    assert x.square().mean().item() == pytest.approx(4 / 12, rel=0.01)
    assert x.pow(4).mean().item() == pytest.approx(16 / 80, rel=0.02)


@pytest.mark.parametrize("law", ["exponential", "normal", "laplace", "mixed"])
def test_other_laws_have_a_context_of_norm_r(law):
    x = regression_tasks(50, input_range=3.0, law=law).tokens[:, :-1, :-1]
    torch.testing.assert_close(torch.linalg.matrix_norm(x), torch.full((50,), 3.0))


def test_as_many_labels_are_corrupted_as_asked_for():
    clean = regression_tasks(40, generator=SEED().manual_seed(1))
    noisy = regression_tasks(40, corrupted=4, generator=SEED().manual_seed(1))
    assert ((clean.tokens != noisy.tokens).sum((1, 2)) == 4).all()
    assert (clean.target == noisy.target).all()


def test_the_same_seed_gives_the_same_tasks():
    first, again = (sine_tasks(5, generator=SEED().manual_seed(2)) for _ in range(2))
    assert (first.tokens == again.tokens).all() and (first.target == again.target).all()


def test_sine_waves_keep_to_their_range():
    tokens, target = sine_tasks(500)
    assert tokens[..., 0].abs().max() <= 5 and tokens[..., 1].abs().max() <= 0.5 and target.abs().max() <= 0.5


def test_x_and_y_get_tokens_of_their_own():
    tokens = regression_tasks(3, 4, 2, 5).tokens
    sequence = token_sequence(tokens, outputs=2)
    assert sequence.shape == (3, 11, 4)
    assert (sequence[:, 0::2] == tokens[..., :4]).all()
    assert (sequence[:, 1::2, 2:] == tokens[:, :-1, 4:]).all() and (sequence[:, 1::2, :2] == 0).all()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: regression_tasks(0), "batch"),
        (lambda: regression_tasks(2, context=0), "context"),
        (lambda: regression_tasks(2, input_range=0), "input_range"),
        (lambda: regression_tasks(2, law="cauchy"), "law"),
        (lambda: regression_tasks(2, corrupted=11), "corrupted"),
        (lambda: sine_tasks(2, corrupted=-1), "corrupted"),
        (lambda: token_sequence(torch.zeros(2, 3)), "tokens"),
        (lambda: token_sequence(torch.zeros(2, 3, 3), outputs=2), "tokens"),
        (lambda: regression_tokens(torch.zeros(2, 3, 4), torch.zeros(2, 2, 1), torch.zeros(2, 4)), "x, y and query"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()
