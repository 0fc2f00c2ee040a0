import pytest
import torch

from everyformer.papers.vdt import VDT, checkpoint

CONFIG = {"input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 8, "depth": 1, "num_heads": 2,
          "num_classes": 1, "num_frames": 3}  # fmt: skip


def test_our_weights_go_to_the_authors_layout_and_back():
    model = VDT(image_size=4, patch=2, channels=2, dim=8, depth=1, heads=2, classes=1, frames=3).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = checkpoint.export(model)
    assert state["pos_embed"].shape == (1, 4, 8)
    assert state["x_embedder.proj.weight"].shape == (8, 2, 2, 2)
    assert state["blocks.0.temporal_fc.weight"].shape == (8, 8)
    again = checkpoint.load(state, CONFIG).eval()
    video, times = torch.randn(2, 3, 2, 4, 4), torch.tensor([3.0, 700.0])
    assert torch.equal(again(video, times), model(video, times))
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 3}, "config has the unknown option width"),
        ({"mode": "image"}, r"config\['mode'\] must be 'video', got 'image'"),
        ({"num_frames": 4}, r"state key time_embed must have shape \(1, 4, 8\), got \(1, 3, 8\)"),
        ({"depth": 2}, "state lacks the key blocks.1"),
    ],
)
def test_options_that_do_not_fit_are_named(change, message):
    model = VDT(image_size=4, patch=2, channels=2, dim=8, depth=1, heads=2, classes=1, frames=3)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(checkpoint.export(model), {**CONFIG, **change})
