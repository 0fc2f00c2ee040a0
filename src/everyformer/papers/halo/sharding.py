"""HQ-FSDP: weights that torch's ``fully_shard`` gathers rotated and rounded (arXiv 2501.02625, section 4).

Each process keeps its rows in full precision. Rotations act within a row, so every process rotates its own; the largest
magnitude is agreed on by one number per weight, and what is gathered are the rounded rows, a byte for each value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from everyformer.ops.hadamard import hadamard
from everyformer.ops.scaled_matmul import largest, quantise

aten = torch.ops.aten
# What a weight goes through on its way into shards: these give shards of the same kind, all else plain tensors.
KEEPING = {
    aten.detach.default, aten.view.default, aten.as_strided.default, aten.slice.Tensor, aten.split.Tensor,
    aten.clone.default, aten._to_copy.default, aten.new_zeros.default, aten.empty_like.default, aten._pin_memory.default,
}  # fmt: skip


class ShardedWeight(torch.Tensor):
    """A weight, or the rows of it that one process keeps, in full precision; like a plain tensor but when gathered."""

    master: Float[Tensor, "rows columns"]

    @staticmethod
    def __new__(cls, master: Tensor, rotate: bool, format: str) -> ShardedWeight:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, master.shape, master.stride(), master.storage_offset(), dtype=master.dtype, device=master.device
        )

    def __init__(self, master: Tensor, rotate: bool, format: str) -> None:
        self.master, self.rotate, self.format = master, rotate, format

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ShardedWeight({self.master}, rotate={self.rotate}, format={self.format!r})"

    def __tensor_flatten__(self) -> tuple[list[str], tuple[bool, str]]:
        return ["master"], (self.rotate, self.format)

    @classmethod
    def __tensor_unflatten__(cls, tensors: dict[str, Tensor], how: Any, size: Any, stride: Any) -> ShardedWeight:
        return cls(tensors["master"], *how)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        first = next((leaf for leaf in tree_leaves(args) if isinstance(leaf, cls)), None)
        out = func(*_masters(args), **_masters(kwargs or {}))
        if func in KEEPING and first is not None:
            return tree_map_only(Tensor, lambda part: cls(part, first.rotate, first.format), out)
        return args[0] if func is aten.copy_.default else out

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: tuple[int, ...], module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor], tuple[Tensor, int]]:
        """The rounded rows of this process, below them zeros where its share is short; the scale is the same for all."""
        rows = hadamard(self.master) if self.rotate else self.master
        amax = largest(rows)
        dist.all_reduce(amax, dist.ReduceOp.MAX, group=mesh.get_group())
        values, scale = quantise(rows, self.format, amax=amax)
        short = -(-outer_size[0] // mesh.size()) - len(values)
        # Bytes are what every backend can send.
        return (F.pad(values.view(torch.uint8), (0, 0, 0, short)),), (scale, outer_size[0])

    def fsdp_post_all_gather(
        self, gathered: tuple[Tensor, ...], metadata: Any, param_dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """The whole weight as a :class:`GatheredWeight` on the gathered bytes; a second time only the scale is new."""
        scale, rows = metadata
        if out is not None:
            out.scale = scale  # type: ignore[attr-defined]
            return None
        values = gathered[0][:rows].view(torch.int8 if self.format == "int8" else torch.float8_e4m3fn)
        return GatheredWeight(values, scale, param_dtype), gathered


class GatheredWeight(torch.Tensor):
    """A whole weight as rounded values and their scale, in the place of the parameter while its layer computes."""

    rounded: Shaped[Tensor, "rows columns"]
    scale: Float[Tensor, ""]

    @staticmethod
    def __new__(cls, rounded: Tensor, scale: Tensor, dtype: torch.dtype) -> GatheredWeight:
        return torch.Tensor._make_wrapper_subclass(cls, rounded.shape, dtype=dtype, device=rounded.device)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, rounded: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        self.rounded, self.scale = rounded, scale

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GatheredWeight({self.rounded}, {self.scale})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        weight = args[0]
        if func is aten.detach.default or (func is aten.as_strided.default and tuple(args[1]) == weight.shape):
            return cls(weight.rounded, weight.scale, weight.dtype)
        if func is aten.zeros_like.default:  # the gradient where a layer was not used
            return torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        raise NotImplementedError(f"{func} does not work on a gathered, rounded weight: only its own layer can use it")


def _masters(tree: Any) -> Any:
    return tree_map_only(ShardedWeight, lambda weight: weight.master, tree)
