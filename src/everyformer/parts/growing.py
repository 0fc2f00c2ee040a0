"""Tensors that tokens are added to one after the other, as keys and values are while a text is written."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor


def grown(
    room: Shaped[Tensor, "..."] | None, length: int, new: Shaped[Tensor, "..."], *, dim: int
) -> Shaped[Tensor, "..."]:
    """``new`` behind the first ``length`` of ``room`` along ``dim``; what comes after it is free and means nothing.

    Full, the room is made twice as wide as it must be, so that a token costs no copy of all before it. It is written in
    place, but where gradients must find their way back the whole is another tensor.
    """
    if room is None:
        return new
    end = length + new.shape[dim]
    if torch.is_grad_enabled() and (new.requires_grad or room.requires_grad):
        return torch.cat([room.narrow(dim, 0, length), new], dim)
    if room.shape[dim] < end:
        shape = list(room.shape)
        shape[dim] = 2 * end
        wider = room.new_empty(shape)
        wider.narrow(dim, 0, length).copy_(room.narrow(dim, 0, length))
        room = wider
    room.narrow(dim, length, new.shape[dim]).copy_(new)
    return room
