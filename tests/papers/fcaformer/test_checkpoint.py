import argparse

import pytest
import torch

from everyformer.papers.fcaformer import FcaFormer, checkpoint
from everyformer.papers.fcaformer.model import VARIANTS
from everyformer.parts import checkpoints

TINY = {"img_size": 64, "num_classes": 5, "dims": (8, 16, 24, 32), "depths": (1, 1, 3, 2), "heads": (0, 0, 3, 4)}
CONFIG = {
    "img_size": 64,
    "num_classes": 5,
    "embed_dims": [8, 16, 24, 32],
    "depths": [1, 1, 3, 2],
    "num_heads": [0, 0, 3, 4],
}


def test_files_of_the_authors_training_are_read(tmp_path):
    model = FcaFormer(**TINY)
    torch.save({"model": checkpoint.export(model), "args": argparse.Namespace(lr=1e-3)}, tmp_path / "best.pth")
    again = checkpoint.load(checkpoints.read(tmp_path / "best.pth"), CONFIG)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_the_state_of_another_variant_is_told_with_the_one_that_fits():
    with torch.device("meta"):
        state = checkpoint.export(FcaFormer(**VARIANTS["fcaformer_l2"]))
    message = r"patch_embed\.seq\.0\.c\.weight must have shape \(32, 3, 3, 3\), got \(48.*the state fits fcaformer_l2"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(state, {"variant": "fcaformer_l1"})


def test_options_that_do_not_fit_are_named():
    state = checkpoint.export(FcaFormer(**TINY))
    with pytest.raises(ValueError, match=r"config\['variant'\] must be one of .*'fcaformer_l4'\], got 'fcaformer_l0'"):
        checkpoint.load(state, {"variant": "fcaformer_l0"})
    with pytest.raises(ValueError, match="unknown option embed_dim"):
        checkpoint.load(state, {**CONFIG, "embed_dim": 3})
    with pytest.raises(ValueError, match="config must give variant"):
        checkpoint.load(state, {})
    with pytest.raises(ValueError, match="model must be a hybrid of four stages"):
        checkpoint.export(FcaFormer(img_size=32, dims=(8,), depths=(1,), heads=(2,), patch=16, patches=True))
