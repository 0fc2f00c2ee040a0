"""A compressed model as a safetensors file that is as small as the model is.

Shared tensors are written once, four-bit numbers two in a byte, and a tensor with many zeros as its other values beside
a bit for each place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int8, UInt8
from safetensors.torch import load_file, save
from torch import Tensor, nn

BITS, VALUES, NIBBLES = "@bits", "@values", "@nibbles"


def to_bytes(model: nn.Module) -> bytes:
    """The file's content."""
    return save({part: tensor for name, whole, low in _leaves(model) for part, tensor in _packed(name, whole, low)})


def held_bytes(model: nn.Module) -> int:
    """What the model's tensors take in memory, shared ones once."""
    return sum(_bytes(whole) for _, whole, _ in _leaves(model))


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill a model, compressed in the same way before, from a file of :func:`to_bytes`; returns it.

    Raises:
        ValueError: names the first tensor that is missing, unexpected or of another shape.
    """
    state = load_file(path)
    used: set[str] = set()
    for name, whole, low in _leaves(model):
        wanted = [part for part, _ in _packed(name, whole, low)]
        forms = [[name], [name + BITS, name + VALUES], [name + NIBBLES]]
        form = next((form for form in forms if all(part in state for part in form)), None)
        if form is None:
            raise ValueError(f"file must hold {wanted[0]!r}, got {len(state)} tensors without it")
        _fill(whole, [state[part] for part in form], form[0], low)
        used |= set(form)
    if unexpected := sorted(set(state) - used):
        raise ValueError(f"file must hold tensors of the model only, got {unexpected[0]!r}")
    return model


def _leaves(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Names and plain tensors of a model, each once, and whether they hold four-bit numbers."""
    seen: set[int] = set()
    kept = model.state_dict(keep_vars=True)
    for name, tensor in kept.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield from _inner(name, tensor.detach(), False)


def _inner(name: str, tensor: Tensor, low: bool) -> Iterator[tuple[str, Tensor, bool]]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor, low
        return
    parts, _ = tensor.__tensor_flatten__()
    for part in parts:
        four = str(getattr(tensor, "target_dtype", "")) == "torch.int4" and getattr(tensor, part).dtype == torch.int8
        yield from _inner(f"{name}.{part}", getattr(tensor, part), four)


def _packed(name: str, whole: Tensor, low: bool) -> Iterator[tuple[str, Tensor]]:
    flat = whole.contiguous().view(-1)
    dense = _nibbles(flat) if low else flat
    if flat.element_size() > 1 or flat.dtype == torch.int8:
        values = _nibbles(flat[flat != 0]) if low else flat[flat != 0]
        if -(-flat.numel() // 8) + _bytes(values) < _bytes(dense):
            yield name + BITS, _bits(flat != 0)
            yield name + VALUES, values
            return
    yield (name + NIBBLES, dense) if low else (name, whole.contiguous())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _nibbles(numbers: Int8[Tensor, " numbers"]) -> UInt8[Tensor, " bytes"]:
    """Numbers from -8 to 7, two in a byte; a zero fills the last one up."""
    padded = torch.cat([numbers, numbers.new_zeros(len(numbers) % 2)])
    pairs = (padded.to(torch.int16) + 8).to(torch.uint8).view(-1, 2)
    return pairs[:, 0] | pairs[:, 1] << 4


def _numbers(nibbles: UInt8[Tensor, " bytes"]) -> Int8[Tensor, " numbers"]:
    return (torch.stack([nibbles & 15, nibbles >> 4], dim=-1).flatten().to(torch.int16) - 8).to(torch.int8)


def _bits(flags: Tensor) -> Tensor:
    """Eight flags in a byte."""
    padded = torch.cat([flags, flags.new_zeros(-len(flags) % 8)]).view(-1, 8).to(torch.uint8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=flags.device)).sum(-1, dtype=torch.uint8)


@torch.no_grad()
def _fill(whole: Tensor, parts: list[Tensor], label: str, low: bool) -> None:
    parts = [part.to(whole.device) for part in parts]
    if label.endswith(BITS):
        shifts = torch.arange(8, dtype=torch.uint8, device=whole.device)
        flags = (parts[0][:, None] >> shifts & 1).flatten()[: whole.numel()].bool()
        count = int(flags.sum())
        values = _numbers(parts[1])[:count] if low else parts[1]
        if count != len(values) or len(flags) != whole.numel():
            raise ValueError(f"{label!r} must be of shape {tuple(whole.shape)}")
        flat = torch.zeros(whole.numel(), dtype=whole.dtype, device=whole.device)
        flat[flags] = values.to(whole.dtype)
        whole.copy_(flat.view_as(whole))
    elif label.endswith(NIBBLES):
        numbers = _numbers(parts[0])
        if not 0 <= len(numbers) - whole.numel() <= 1:
            raise ValueError(f"{label!r} must be of shape {tuple(whole.shape)}")
        whole.copy_(numbers[: whole.numel()].view_as(whole))
    elif parts[0].shape != whole.shape:
        raise ValueError(f"{label!r} must be of shape {tuple(whole.shape)}, got {tuple(parts[0].shape)}")
    else:
        whole.copy_(parts[0])
