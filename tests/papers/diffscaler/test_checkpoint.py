import pytest
import torch

from everyformer.papers.diffscaler import checkpoint
from everyformer.parts.dit import DiT

CONFIG = {"input_size": 8, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 3}


def test_the_published_size_is_the_default():
    with torch.device("meta"):
        model = checkpoint._build({})
    assert sum(parameter.numel() for parameter in model.parameters()) == 674_834_720
    assert model.positions.shape == (256, 1152)


def test_positions_are_the_ones_of_the_state():
    torch.manual_seed(0)
    model = checkpoint._build(CONFIG)
    state = checkpoint.export(model)
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    again = checkpoint.load(state, CONFIG)
    assert torch.equal(again.positions, state["pos_embed"][0])
    assert isinstance(again, DiT)


def test_guidance_of_scale_one_is_the_class_and_reaches_three_channels():
    torch.manual_seed(0)
    model = checkpoint._build(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, t, y = torch.randn(4, 4, 8, 8), torch.tensor([5, 6, 5, 6]), torch.tensor([0, 2, 3, 3])
    plain = model(torch.cat([x[:2], x[:2]]), t, y)
    found = checkpoint.guided(model, x, t, y, 1.0)
    torch.testing.assert_close(found[:2], plain[:2])
    torch.testing.assert_close(found[2:, :3], plain[:2, :3])
    torch.testing.assert_close(checkpoint.guided(model, x, t, y, 5.0)[:, 3:], plain[:, 3:])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "width": 3}, "config has the unknown option width"),
        ({**CONFIG, "class_dropout_prob": 0.0}, "config must have class_dropout_prob above 0"),
        ({**CONFIG, "num_heads": 3}, "dim must be divisible by heads"),
    ],
)
def test_options_that_do_not_fit_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load({}, config)
