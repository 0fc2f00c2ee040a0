import pytest
import torch

from everyformer.papers.favit import FaViT, checkpoint
from everyformer.papers.favit.model import VARIANTS
from everyformer.parts import checkpoints

TINY = {
    "num_classes": 5,
    "dims": (16, 16, 32, 48),
    "depths": (1, 1, 2, 1),
    "heads": (1, 1, 2, 2),
    "mlp_ratios": (2,) * 4,
}
CONFIG = {
    "num_classes": 5,
    "embed_dims": [16, 16, 32, 48],
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
}


def test_files_of_the_authors_training_are_read_and_give_the_same_network(tmp_path):
    model = FaViT(**TINY).eval()
    torch.save({"model": checkpoint.export(model), "epoch": 3}, tmp_path / "best.pth")
    again = checkpoint.load(checkpoints.read(tmp_path / "best.pth"), CONFIG).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), model(x))


def test_the_state_of_another_variant_is_told_with_the_one_that_fits():
    with torch.device("meta"):
        state = checkpoint.export(FaViT(**VARIANTS["favit_b2"]))
    message = r"patch_embed1\.proj\.weight must have shape \(32, 3, 7, 7\), got \(64.*the state fits favit_b2$"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(state, {"variant": "favit_b0"})
    message = r"state has the unexpected key block2\.2\..*the state fits favit_b2$"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(state, {"variant": "favit_b1"})


def test_options_that_do_not_fit_are_named():
    model = FaViT(**TINY)
    state = checkpoint.export(model)
    with pytest.raises(ValueError, match=r"config\['variant'\] must be one of .*'favit_b3'\], got 'favit_b9'"):
        checkpoint.load(state, {"variant": "favit_b9"})
    with pytest.raises(ValueError, match="unknown option embed_dim"):
        checkpoint.load(state, {**CONFIG, "embed_dim": 3})
    with pytest.raises(ValueError, match="config must give variant"):
        checkpoint.load(state, {})
    three = {name: value[:3] if isinstance(value, tuple) else value for name, value in TINY.items()}
    with pytest.raises(ValueError, match="model must have four stages for the authors' code, got 3"):
        checkpoint.export(FaViT(**three, reductions=(4, 2, 1)))
