"""Every pair <name>.json + <name>.safetensors here is run: a paper needs a checkpoint.py and no test code of its own.

The JSON names paper, source, commit, configuration and tolerance. ``state.*`` is loaded strictly by the paper's
``checkpoint.load``; ``checkpoint.replay`` maps ``input.*`` to ``output.*``; ``output.grad_<x>`` is the gradient, with
respect to ``input.<x>``, of the sum of (the output shaped like ``input.weight``) * ``input.weight``. A ``grad_<x>``
without such an input is an output like any other.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import everyformer

FOLDER = Path(__file__).parent
VECTORS = sorted(file.stem for file in FOLDER.glob("*.json"))


def split(name):
    meta = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    groups = {"state": {}, "input": {}, "output": {}}
    for key, tensor in load_file(FOLDER / f"{name}.safetensors").items():
        group, _, rest = key.partition(".")
        groups[group][rest] = tensor
    return meta, everyformer.paper(meta["paper"]).room("checkpoint"), groups


@pytest.mark.parametrize("name", VECTORS)
def test_same_weights_give_the_authors_outputs_and_gradients(name):
    meta, checkpoint, groups = split(name)
    model = checkpoint.load(groups["state"], meta["config"]).eval()
    inputs, expected = dict(groups["input"]), dict(groups["output"])
    weight = inputs.pop("weight", None)
    wanted = [
        key.removeprefix("grad_") for key in expected if key.removeprefix("grad_") in inputs and key[:5] == "grad_"
    ]
    for key in wanted:
        inputs[key] = inputs[key].clone().requires_grad_()
    outputs = dict(checkpoint.replay(model, inputs, meta["config"]))
    if wanted:
        (scored,) = [out for key, out in outputs.items() if key in expected and out.shape == weight.shape]
        grads = torch.autograd.grad((scored * weight).sum(), [inputs[key] for key in wanted])
        outputs |= {f"grad_{key}": grad for key, grad in zip(wanted, grads, strict=True)}
    assert set(expected) <= set(outputs)
    for key, tensor in expected.items():
        torch.testing.assert_close(
            outputs[key].detach(), tensor, atol=meta["tolerance"]["atol"], rtol=meta["tolerance"]["rtol"],
            msg=lambda text, key=key: f"{name}: {key}: {text}",
        )  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_the_state_goes_back_to_the_authors_layout(name):
    meta, checkpoint, groups = split(name)
    back = checkpoint.export(checkpoint.load(groups["state"], meta["config"]))
    assert back.keys() == groups["state"].keys()
    for key, tensor in groups["state"].items():
        torch.testing.assert_close(back[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("name", VECTORS)
def test_a_missing_unexpected_or_misshapen_key_is_named(name):
    meta, checkpoint, groups = split(name)
    state = groups["state"]
    key = sorted(state)[-1]
    without = {k: v for k, v in state.items() if k != key}
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        checkpoint.load(without, meta["config"])
    with pytest.raises(ValueError, match="surplus_key"):
        checkpoint.load({**state, "surplus_key": torch.zeros(1)}, meta["config"])
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        checkpoint.load({**state, key: torch.zeros(*state[key].shape, 2)}, meta["config"])


def test_there_are_vectors_and_they_are_small():
    assert VECTORS
    for name in VECTORS:
        assert (FOLDER / f"{name}.safetensors").stat().st_size < 2**20
        assert {"paper", "source", "commit", "config", "tolerance"} <= json.loads(
            (FOLDER / f"{name}.json").read_text()
        ).keys()
