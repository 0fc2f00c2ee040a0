import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from everyformer.papers.tah import checkpoint

PARITY = Path(__file__).parents[2] / "parity"


@pytest.fixture
def published(tmp_path):
    """The authors' layout: the language model, PEFT's adapter, and a decider with its class beside its weights."""
    card = json.loads((PARITY / "tah.json").read_text(encoding="utf-8"))
    model = checkpoint.load(weights(), card["config"])
    state = checkpoint.export(model)
    parts = {"base": {}, "lora": {}, "decider": {}}
    for key, tensor in state.items():
        part = "decider" if key.startswith("iter_decider.") else "lora" if ".lora_" in key else "base"
        parts[part][key.removeprefix("iter_decider.")] = tensor
    (tmp_path / "lora").mkdir()
    save_file(parts["base"], tmp_path / "model.safetensors")
    save_file(parts["lora"], tmp_path / "lora" / "adapter_model.safetensors")
    torch.save(
        {"class": "MLPIterDecider", "init_args": {}, "state_dict": parts["decider"]}, tmp_path / "iter_decider.bin"
    )
    (tmp_path / "config.json").write_text(json.dumps(card["config"]["base"]), encoding="utf-8")
    (tmp_path / "tah_config.json").write_text(json.dumps(card["config"]["tah"]), encoding="utf-8")
    return tmp_path, model


def weights():
    stored = load_file(PARITY / "tah.safetensors")
    return {key.removeprefix("state."): tensor for key, tensor in stored.items() if key.startswith("state.")}


def test_a_published_folder_is_read_whole(published):
    folder, model = published
    found = checkpoint.read_folder(folder)
    assert found.threshold == model.threshold
    tokens = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(tokens).logits, model(tokens).logits)
        assert torch.equal(found(tokens).depths, model(tokens).depths)


@pytest.mark.parametrize("name", ["config.json", "tah_config.json", "iter_decider.bin"])
def test_a_missing_file_is_named(published, name):
    folder, _ = published
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        checkpoint.read_folder(folder)


def test_a_missing_weight_is_named(published):
    folder, _ = published
    state = load_file(folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        checkpoint.read_folder(folder)


class Trap:
    def __reduce__(self):
        return (open, ("trap", "w"))


def test_nothing_is_unpickled(published, monkeypatch):
    folder, _ = published
    monkeypatch.chdir(folder)
    (folder / "iter_decider.bin").write_bytes(pickle.dumps({"state_dict": Trap()}))
    with pytest.raises(ValueError, match=r"iter_decider\.bin is not a checkpoint of plain tensors"):
        checkpoint.read_folder(folder)
    assert not (folder / "trap").exists()
