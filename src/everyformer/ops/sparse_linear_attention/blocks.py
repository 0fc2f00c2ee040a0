"""Which blocks of keys each block of queries treats exactly, which linearly, which not at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def pool(x: Float[Tensor, "heads tokens dim"], block: int) -> Float[Tensor, "heads blocks dim"]:
    """Mean of each block of tokens, in float32; a last block that is not full counts only its tokens."""
    full = x.shape[1] // block * block
    means = x[:, :full].unflatten(1, (-1, block)).mean(2, dtype=torch.float32)
    if full == x.shape[1]:
        return means
    return torch.cat([means, x[:, full:].mean(1, keepdim=True, dtype=torch.float32)], dim=1)


@torch.no_grad()
def classify(
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads keys dim"],
    critical: float,
    negligible: float,
    block: int,
) -> tuple[Int[Tensor, "heads blocks critical"], Int[Tensor, "heads blocks negligible"]]:
    """Indices of the critical and of the negligible key blocks of every query block (arXiv 2509.24006, eq. 3-5).

    Blocks are ranked by the product of pooled queries and pooled, smoothed keys (the mean over tokens subtracted, which
    changes no ranking but keeps the numbers small); the softmax of the paper is monotonic and therefore left out. At
    least one block is critical unless ``critical`` is 0; fractions are rounded down. Nothing is differentiated.
    """
    pooled = pool(key, block)
    scores = pool(query, block) @ (pooled - key.mean(1, keepdim=True, dtype=torch.float32)).transpose(1, 2)
    blocks = scores.shape[-1]
    most = min(blocks, max(1, int(critical * blocks))) if critical > 0 else 0
    least = min(int(negligible * blocks), blocks - most)
    top = scores.topk(most, sorted=False).indices
    # A block that is critical already cannot be negligible too, however ties fall.
    bottom = scores.scatter_(-1, top, torch.inf).topk(least, largest=False, sorted=False).indices
    return top, bottom


def mask_of(
    critical: Int[Tensor, "heads blocks critical"], negligible: Int[Tensor, "heads blocks negligible"], blocks: int
) -> Int[Tensor, "heads blocks keyblocks"]:
    """The block map of the paper: 1 critical, 0 marginal, -1 negligible."""
    mask = torch.zeros(*critical.shape[:2], blocks, dtype=torch.int8, device=critical.device)
    return mask.scatter_(-1, negligible, -1).scatter_(-1, critical, 1)


def phi(x: Tensor, feature_map: str) -> Tensor:
    """The feature map of the linear branch: ``softmax`` over features, ``elu`` + 1, or ``relu``."""
    if feature_map == "softmax":
        return x.softmax(-1)
    return F.elu(x) + 1 if feature_map == "elu" else F.relu(x)


def phi_backward(grad: Tensor, features: Tensor, feature_map: str) -> Tensor:
    """The gradient with respect to ``phi``'s input, from the features alone."""
    if feature_map == "softmax":
        return features * (grad - (grad * features).sum(-1, keepdim=True))
    return grad * (features.clamp(max=1) if feature_map == "elu" else features > 0)
