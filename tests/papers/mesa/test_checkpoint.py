import torch

from everyformer.papers.mesa import CausalLinearAttention, checkpoint


def test_complex_weights_and_pairs_give_the_same_layer_and_each_goes_back_to_what_it_was():
    state = checkpoint.export(CausalLinearAttention(3))
    pairs = {name: torch.view_as_real(weight) for name, weight in state.items()}
    for given in (state, pairs):
        model = checkpoint.load(given, {"dim": 3})
        assert torch.equal(model.w_kq, state["WKQ"]) and torch.equal(model.w_pv, state["WPV"])
        back = checkpoint.export(model)
        assert all(torch.equal(back[name], given[name]) for name in given)
    assert all(not weight.is_complex() for weight in checkpoint.export(model, pairs=True).values())


def test_double_precision_is_kept():
    state = checkpoint.export(CausalLinearAttention(2, torch.complex128))
    assert checkpoint.load(state, {"dim": 2}).w_kq.dtype == torch.complex128
