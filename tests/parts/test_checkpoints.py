import argparse

import pytest
import torch
from safetensors.torch import save_file

from everyformer.parts import checkpoints

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}
SHAPES = {"a.weight": (2, 3), "a.bias": (2,)}


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_files_are_read_with_or_without_what_a_training_keeps_beside(tmp_path, wrapper):
    held = {wrapper: STATE, "args": argparse.Namespace(lr=1e-3), "epoch": 3} if wrapper else STATE
    torch.save(held, tmp_path / "best.pth")
    read = checkpoints.read(tmp_path / "best.pth")
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[key], STATE[key]) for key in STATE)


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert torch.equal(checkpoints.read(tmp_path / "model.safetensors")["a.weight"], STATE["a.weight"])


def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        checkpoints.read(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


def test_files_that_hold_no_state_dict_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"path must be a checkpoint file, got .*nowhere"):
        checkpoints.read(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(ValueError, match=r"text\.pth is not a checkpoint of plain tensors"):
        checkpoints.read(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold a mapping of names to tensors, got list"):
        checkpoints.read(tmp_path / "list.pth")


def test_the_first_difference_is_named_with_what_would_fit():
    checkpoints.check(STATE, SHAPES)
    with pytest.raises(ValueError, match=r"state lacks the key b$"):
        checkpoints.check(STATE, {"b": (1,), **SHAPES})
    with pytest.raises(
        ValueError, match=r"a\.weight must have shape \(2, 4\), got \(2, 3\); the state fits small, wide$"
    ):
        checkpoints.check(STATE, {**SHAPES, "a.weight": (2, 4)}, lambda: ["small", "wide"])
    with pytest.raises(ValueError, match=r"state has the unexpected key a\.bias$"):
        checkpoints.check(STATE, {"a.weight": (2, 3)}, list)
