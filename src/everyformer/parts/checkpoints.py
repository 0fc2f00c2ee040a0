"""Reading checkpoints: files without unpickling, and state dicts that must fit a model key by key."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

# Where trainings keep the weights inside a file, in order of preference.
WRAPPERS = ("state_dict", "model")


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file: safetensors, or a torch file read with ``weights_only=True``.

    A torch file may hold the state dict itself, or have it under ``state_dict`` or ``model`` beside the training's
    command line.

    Raises:
        ValueError: no such file, or not a plain mapping of names to tensors (nothing is unpickled).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must be a checkpoint file, got {path}")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is not a checkpoint of plain tensors: {error}") from error
    if isinstance(state, Mapping):
        state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a mapping of names to tensors, got {type(state).__name__}")
    return dict(state)


def check(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    fitting: Callable[[], Sequence[str]] = list,
) -> None:
    """See that a state dict has just the keys and shapes of a model.

    Args:
        state: the state dict.
        expected: the shape of each key, in the order of the model.
        fitting: called only when they differ: the names of the variants that the state would fit.

    Raises:
        ValueError: names the first key that is missing, misshapen or unexpected, and the variants that would fit.
    """
    if difference := _first_difference(state, expected):
        names = fitting()
        raise ValueError(difference + (f"; the state fits {', '.join(names)}" if names else ""))


def _first_difference(state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> str | None:
    for key, shape in expected.items():
        if key not in state:
            return f"state lacks the key {key}"
        if tuple(state[key].shape) != tuple(shape):
            return f"state key {key} must have shape {tuple(shape)}, got {tuple(state[key].shape)}"
    unexpected = next((key for key in state if key not in expected), None)
    return None if unexpected is None else f"state has the unexpected key {unexpected}"
