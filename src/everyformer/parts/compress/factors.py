"""Fewer numbers for the same layers: low-rank factors, and blocks that share their weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.compress.anatomy import Replacement, blocks, check_plain, few_bits, linears, prepare


class LowRank(nn.Sequential, Replacement):
    """A linear layer as two with fewer features between them: x -> (x A) B + b."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        weight = layer.weight.detach()
        left, sizes, right = torch.linalg.svd(weight.float(), full_matrices=False)
        root = sizes[:rank].sqrt()
        down = nn.Linear(layer.in_features, rank, bias=False, device=weight.device, dtype=weight.dtype)
        up = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            down.weight.copy_(root[:, None] * right[:rank])
            up.weight.copy_(left[:, :rank] * root)
            if layer.bias is not None:
                up.bias.copy_(layer.bias)
                up.bias.requires_grad_(layer.bias.requires_grad)
        for part in (down, up):
            part.weight.requires_grad_(layer.weight.requires_grad)
        super().__init__(down, up)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The product, made anew at each reading."""
        down, up = self
        return up.weight @ down.weight  # type: ignore[operator, return-value]

    @property
    def bias(self) -> Tensor | None:
        """That of the second."""
        return self[1].bias  # type: ignore[return-value]


def low_rank(model: nn.Module, ratio: float = 0.5, *, names: Iterable[str] | None = None) -> nn.Module:
    """Replace linear layers by the product of two, the best of its rank (truncated SVD; arXiv 2307.07982, section 3).

    Args:
        ratio: share of a layer's weights that the two hold together at most, above 0 and below 1.
        names: the layers; those of the blocks by default.

    Raises:
        ValueError: a share outside (0, 1), a layer for which not even rank 1 is that small, or weights in fewer bits.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be above 0 and below 1, got {ratio}")
    layers = linears(prepare(model), names)
    check_plain(layers)
    ranks = {}
    for name, layer in layers.items():
        rank = int(ratio * layer.weight.numel() / (layer.in_features + layer.out_features))
        if rank < 1:
            shape = tuple(layer.weight.shape)
            raise ValueError(f"ratio must leave at least rank 1, got {ratio} for {shape} in {name!r}")
        ranks[name] = rank // 16 * 16 or rank  # a multiple of sixteen, as fast kernels and blocks of few bits want it
    made: dict[int, LowRank] = {}  # layers that share a weight go on sharing
    for name, layer in layers.items():
        if id(layer.weight) not in made:
            made[id(layer.weight)] = LowRank(layer, ranks[name])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(layer.weight)])
    return model


def share_blocks(model: nn.Module, every: int = 2) -> nn.Module:
    """Let each ``every`` blocks that follow each other use the first one's weights (ALBERT, arXiv 1909.11942).

    Train on afterwards: a block that takes another's place seldom fits at once.

    Raises:
        ValueError: ``every`` below 2 or above the number of blocks, blocks of other sizes, or weights in fewer bits.
    """
    _, members = blocks(model)
    check_plain({name: layer for name, layer in members.named_modules() if few_bits(layer)})
    if not 2 <= every <= len(members):
        raise ValueError(f"every must be from 2 to the {len(members)} blocks, got {every}")
    for number, block in enumerate(members):
        first = members[number - number % every]
        own, given = dict(block.named_parameters()), dict(first.named_parameters())
        sizes = [{name: tuple(tensor.shape) for name, tensor in part.items()} for part in (own, given)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"blocks must have equal sizes to share weights, got another in block {number}")
    for number, block in enumerate(members):
        given = dict(members[number - number % every].named_parameters())
        for name in dict(block.named_parameters()):
            parent, _, child = name.rpartition(".")
            setattr(block.get_submodule(parent), child, given[name])
    return model
