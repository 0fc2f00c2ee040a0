import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.mesa import CausalLinearAttention, LossForm, ar_sequences, limit_product, moments, train
from everyformer.papers.mesa.model import loss
from everyformer.papers.mesa.training import off_diagonal_norm


@settings(max_examples=15, deadline=None)
@given(dim=st.integers(1, 3), length=st.integers(3, 12), batch=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_form_has_the_loss_and_the_gradient_of_the_layer(dim, length, batch, seed):
    torch.manual_seed(seed)
    x = ar_sequences("gaussian", dim, length, batch, seed).to(torch.complex128)
    layer = CausalLinearAttention(dim, torch.complex128)
    direct, weights = loss(layer(x), x), list(layer.parameters())
    formed = LossForm.of(x, chunk=7)(layer.w_kq.unsqueeze(0), layer.w_pv.unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(formed, direct, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(formed, weights), torch.autograd.grad(direct, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_training_many_at_once_is_training_each_with_sgd():
    starts, rate = [(0.1, 0.1), (0.5, 1.5)], torch.tensor([2e-3, 1e-3])
    samples = [ar_sequences(law, 2, 8, 40, seed) for seed, law in enumerate(("signs", "uniform"))]
    path = train(LossForm.stack([LossForm.of(x) for x in samples]), starts, rate, 20)
    for law, x in enumerate(samples):
        for place, start in enumerate(starts):
            layer = CausalLinearAttention.from_product(*start, dim=2)
            optimiser = torch.optim.SGD(layer.parameters(), float(rate[law]))
            for _ in range(20):
                optimiser.zero_grad()
                loss(layer(x), x).backward()
                optimiser.step()
            torch.testing.assert_close(path.w_kq[-1, law, place], layer.w_kq.detach(), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(path.w_pv[-1, law, place], layer.w_pv.detach(), atol=1e-4, rtol=1e-4)


def test_training_ends_at_the_closed_form_from_any_start():
    form = LossForm.of(ar_sequences("sparse", 2, 10, 500, 0))
    path = train(form, [(0.1, 0.1), (0.5, 1.5), (2.0, 2.0)], 5e-3, 400)
    torch.testing.assert_close(path.product[-1], torch.ones(3), atol=2e-3, rtol=0)
    assert limit_product(moments("sparse", 2), 10) == 1


def test_the_flow_conserves_what_descent_with_large_steps_does_not():
    form = LossForm.of(ar_sequences("signs", 2, 10, 2000, 0))
    drift = {}
    for method in ("descent", "runge-kutta"):
        path = train(form, [(0.5, 2.0)], 1e-2, 60, method=method)
        # The flow of the whole layer conserves the difference of the two matrices' squared norms exactly.
        difference = path.w_kq.abs().square().sum((-2, -1)) - path.w_pv.abs().square().sum((-2, -1))
        drift[method] = float((difference - difference[0]).abs().max())
    assert drift["runge-kutta"] < 1e-3 < drift["descent"]


def test_ones_leave_the_diagonal_unless_they_are_cleared():
    form = LossForm.of(ar_sequences("ones", 3, 10, 1000, 0))
    free, cleared = (train(form, [(0.1, 0.1)], 3e-3, 300, clip=clip) for clip in (False, True))
    assert off_diagonal_norm(free.w_kq[-1], free.w_pv[-1]) > 0.2
    assert off_diagonal_norm(cleared.w_kq[-1], cleared.w_pv[-1]) == 0
    assert form(free.w_kq[-1], free.w_pv[-1]) < form(cleared.w_kq[-1], cleared.w_pv[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": []}, "starts must not be empty"),
        ({"starts": [(0.1, 0.0)]}, "b must be positive"),
        ({"steps": 0}, "steps be at least 1"),
        ({"method": "adam"}, "method must be"),
    ],
)
def test_bad_input_is_named(change, message):
    form = LossForm.of(ar_sequences("signs", 1, 5, 2, 0))
    with pytest.raises(ValueError, match=message):
        train(**{"form": form, "starts": [(0.1, 0.1)], "rate": 1e-3, "steps": 1, **change})
    with pytest.raises(ValueError, match="at least three tokens"):
        LossForm.of(torch.zeros(1, 2, 1, dtype=torch.complex64))
