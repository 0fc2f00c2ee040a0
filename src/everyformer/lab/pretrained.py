"""Models that are trained once: their weights are kept beside the downloaded data, by a hash of all they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from everyformer.files import write_atomic
from everyformer.lab import data


def load_or_train(
    model: nn.Module,
    fit: Callable[[Path], object],
    *,
    recipe: Mapping[str, Any],
    samples: Iterable[Tensor],
    code: Iterable[ModuleType],
) -> None:
    """Give ``model`` the weights that it had after an earlier call, or have ``fit`` train it in place and keep them.

    What is trained from another recipe, other samples, other code or another torch is another model. An interrupted
    training goes on where it was if ``fit`` trains with the folder it is given.

    Args:
        model: with its first weights, on the CPU or where it is trained.
        fit: trains ``model``; its argument is a folder for what an interrupted training leaves.
        recipe: everything that settles the result, such as sizes, steps and seed; plain values.
        samples: tensors that are trained on.
        code: modules whose text settles the result.
    """
    contents = hashlib.sha256()
    for tensor in samples:
        contents.update(tensor.contiguous().numpy().tobytes())
    for module in code:
        contents.update(Path(str(module.__file__)).read_bytes())
    key = {"model": type(model).__name__, "torch": torch.__version__, "contents": contents.hexdigest(), **recipe}
    folder = data.cache() / "models" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    weights = folder / "model.safetensors"
    if not weights.exists():
        fit(folder / "training")
        write_atomic(weights, save({name: tensor.contiguous() for name, tensor in _named(model).items()}))
    state = load_file(weights)
    with torch.no_grad():
        for name, tensor in _named(model).items():
            tensor.copy_(state[name])


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and kept buffers, each once: tied weights have one name among the parameters."""
    kept = model.state_dict()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}
