"""Data that simulators make: computed once in parts, and kept by a hash of all that settles them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from everyformer.files import write_atomic
from everyformer.lab import data


def load_or_make(
    name: str,
    make: Callable[[int], Mapping[str, Tensor]],
    *,
    parts: int,
    settings: Mapping[str, Any],
    code: Iterable[ModuleType],
) -> dict[str, Tensor]:
    """The tensors of ``make(0)`` to ``make(parts - 1)``, each part from the cache if an earlier call made it.

    An interrupted call loses the part that it was at. Other settings, other code or another torch make other data.

    Args:
        name: what the data are; shown on the progress bar, and the name of their folder.
        make: computes a part from its number; the same names in every part, the first axis may differ.
        parts: how many there are.
        settings: everything that settles a part but its number, such as sizes and seed; plain values.
        code: modules whose text settles the data.

    Returns:
        for each name, the parts one after the other along the first axis.

    Raises:
        ValueError: ``parts`` is below one.
    """
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}")
    text = hashlib.sha256()
    for module in code:
        text.update(Path(str(module.__file__)).read_bytes())
    key = json.dumps({"torch": torch.__version__, "code": text.hexdigest(), **settings}, sort_keys=True)
    folder = data.cache() / "simulated" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    made = []
    for part in _shown(range(parts), name):
        path = folder / f"{part:05d}.safetensors"
        if not path.exists():
            write_atomic(path, save({label: tensor.contiguous() for label, tensor in make(part).items()}))
        made.append(load_file(path))
    return {label: torch.cat([one[label] for one in made]) for label in made[0]}


def _shown(parts: range, name: str) -> Iterator[int]:
    """The parts, with a progress bar where there is a terminal."""
    if not sys.stderr.isatty():
        yield from parts
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(parts, description=f"simulating {name}", console=Console(stderr=True), transient=True)
