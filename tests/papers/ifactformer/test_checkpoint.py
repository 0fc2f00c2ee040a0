import pytest
import torch

from everyformer.papers.ifactformer import IFactFormer, checkpoint

CONFIG = {"dim": 12, "heads": 2, "dim_head": 4, "n_layer": 2, "in_time_window": 3, "depth": 2, "out_dim": 4}


@pytest.mark.parametrize(("name", "attention"), [("IFactFormer_m", "parallel"), ("IFactFormer_o", "chained")])
def test_our_weights_go_to_the_authors_layout_and_back(name, attention):
    model = IFactFormer(dim=12, heads=2, head_dim=4, iterations=2, time_window=3, depth=2, out_channels=4,
                        attention=attention)  # fmt: skip
    state = checkpoint.export(model)
    assert state["to_in.0.weight"].shape == (6, 1, 1, 1)
    assert state["to_in.2.weight"].shape == (12, 6, 3, 1)
    assert state["encoder.layers.1.1.to_x.0.out_ffn.fn.net.3.bias"].shape == (12,)
    assert state["encoder.layers.1.1.to_z.1.to_in.weight"].shape == (12, 12)
    assert state["encoder.layers.0.1.low_rank_kernel_y.pos_emb.inv_freq"].shape == (6,)
    again = checkpoint.load(state, {**CONFIG, "model": name})
    u, axes = torch.randn(1, 3, 4, 5, 3, 3), [torch.rand(4), torch.rand(5), torch.rand(3)]
    torch.testing.assert_close(again(u, axes), model(u, axes), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_the_lift_of_several_snapshots_is_theirs():
    """Two convolutions over (time, points), as the layout has them: channels in groups, then all over time."""
    model = IFactFormer(dim=12, heads=2, head_dim=4, iterations=1, time_window=3)
    state, u = checkpoint.export(model), torch.randn(2, 3, 4, 5, 3, 3)
    image = u.flatten(2, 4).permute(0, 3, 1, 2)
    image = torch.nn.functional.conv2d(image, state["to_in.0.weight"], state["to_in.0.bias"], groups=3)
    image = torch.nn.functional.conv2d(torch.nn.functional.gelu(image), state["to_in.2.weight"])
    torch.testing.assert_close(model.lift(u), image[:, :, 0].mT.unflatten(1, (4, 5, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 3}, "config has the unknown option width"),
        ({"model": "IFactFormer"}, r"config\['model'\] must be one of IFactFormer_m, IFactFormer_o, got 'IFactFormer'"),
        ({"model": "IFactFormer_o"}, "to_out.2.weight must have shape"),
        ({"depth": 3}, "state lacks the key encoder.layers.2"),
        ({"in_time_window": 2}, r"to_in.2.weight must have shape \(12, 6, 2, 1\), got \(12, 6, 3, 1\)"),
    ],
)
def test_options_that_do_not_fit_are_named(change, message):
    model = IFactFormer(dim=12, heads=2, head_dim=4, iterations=2, time_window=3, depth=2, out_channels=4)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(checkpoint.export(model), {**CONFIG, **change})


def test_plane_models_have_no_layout_of_the_authors():
    model = IFactFormer(dim=12, heads=2, head_dim=4, iterations=2, dims=2)
    with pytest.raises(ValueError, match="model must have dims=3"):
        checkpoint.export(model)
