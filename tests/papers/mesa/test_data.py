import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.mesa import ar_sequences
from everyformer.papers.mesa.data import LAWS, first_values


@settings(max_examples=25, deadline=None)
@given(law=st.sampled_from(sorted(LAWS)), dim=st.integers(1, 6), length=st.integers(3, 40), seed=st.integers(0, 99))
def test_each_step_is_one_and_the_same_unitary_diagonal_map(law, dim, length, seed):
    x = ar_sequences(law, dim, length, batch=4, seed=seed)
    assert x.shape == (4, length, dim) and x.dtype == torch.complex64
    # x_{t+1} conj(x_t) is lambda |x_1|^2 at every t.
    turns = x[:, 1:] * x[:, :-1].conj()
    torch.testing.assert_close(turns, turns[:, :1].expand_as(turns), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.abs(), x[:, :1].abs().expand_as(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x[:, 0].imag, torch.zeros(4, dim), atol=1e-6, rtol=0)


def test_the_same_seed_gives_the_same_sequences_and_another_does_not():
    one, same, other = (ar_sequences("gaussian", 3, 8, 5, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_laws_are_what_their_names_say():
    x = {law: first_values(law, 4, 4000, torch.Generator().manual_seed(0), scale=2.0) for law in LAWS}
    assert (x["ones"] == 2).all() and (x["signs"].abs() == 2).all()
    assert ((x["sparse"] != 0).sum(dim=1) == 1).all() and x["sparse"].abs().max() == 2
    assert x["uniform"].abs().max() <= 2
    assert abs(x["gaussian"].std() - 2) < 0.1
    assert 0.4 < (x["mixed"].abs() == 2).all(dim=1).float().mean() < 0.6


def test_own_phases_are_used_and_a_function_is_a_law():
    phases = torch.tensor([1j, -1.0])
    x = ar_sequences(lambda batch, dim, generator: torch.ones(batch, dim), 2, 5, 3, 0, phases=phases)
    torch.testing.assert_close(x[0, :, 0], torch.tensor([1, 1j, -1, -1j, 1], dtype=torch.complex64))
    torch.testing.assert_close(x[2, :, 1], torch.tensor([1, -1, 1, -1, 1], dtype=torch.complex64))


def test_double_precision_first_values_give_double_precision_sequences():
    x = ar_sequences(lambda b, d, g: torch.randn(b, d, generator=g, dtype=torch.float64), 2, 5, 3, 0)
    assert x.dtype == torch.complex128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 2}, "length must be at least 3, got 2"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"law": "cauchy"}, "law must be one of"),
        ({"law": lambda b, d, g: torch.zeros(b, d + 1)}, "law must give a tensor of shape"),
        ({"law": lambda b, d, g: torch.zeros(b, d, dtype=torch.complex64)}, "real and finite"),
        ({"law": lambda b, d, g: torch.full((b, d), torch.inf)}, "real and finite"),
        ({"phases": torch.tensor([1.0, 1.1, 1.0])}, r"modulus one, got 1.1.* at \(1,\)"),
        ({"phases": torch.tensor([1.0, torch.nan, 1.0])}, "modulus one"),
        ({"phases": torch.ones(2)}, "phases must have shape"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"law": "signs", "dim": 3, "length": 6, "batch": 2, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        ar_sequences(**arguments)


def test_a_law_that_is_neither_name_nor_function_is_a_type_error():
    with pytest.raises(TypeError, match="law must be a name or a function"):
        ar_sequences(3, 2, 5, 1, 0)
