"""What the virtual node is compared with: attention among all nodes of a graph, full or linear.

Both read no edges, take the batch vector, and treat every graph by itself.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.mpnn_gt.segments import Batch, Segments, check_nodes
from everyformer.parts.mixers.kernel import elu_and_one, random_exponents, rotation


class EluFeatures(nn.Module):
    """phi(x) = elu(x) + 1, positive (arXiv 2006.16236, eq. 7)."""

    def forward(self, x: Float[Tensor, "... head_dim"]) -> Float[Tensor, "... head_dim"]:
        """Features of queries or keys."""
        return elu_and_one(x)


class RandomFeatures(nn.Module):
    """phi(x) = exp(w.s - |s|²/2) / sqrt(m), s = x / head_dim^(1/4): phi(q).phi(k) is exp(q.k / sqrt(head_dim)) on average.

    The rows w are Gaussian and orthogonal in blocks (FAVOR+, arXiv 2009.14794, section 2.3).

    Args:
        head_dim: width of a head.
        features: m, twice ``head_dim`` by default.
        seed: of the rows.
    """

    rows: Tensor

    def __init__(self, head_dim: int, features: int | None = None, seed: int = 0) -> None:
        super().__init__()
        features = 2 * head_dim if features is None else features
        if min(head_dim, features) < 1:
            raise ValueError(f"head_dim and features must be at least 1, got {head_dim} and {features}")
        generator = torch.Generator().manual_seed(seed)
        count = math.ceil(features / head_dim)
        blocks = [rotation(torch.randn(head_dim, head_dim, generator=generator)) for _ in range(count)]
        lengths = torch.randn(features, head_dim, generator=generator).norm(dim=1, keepdim=True)
        self.register_buffer("rows", torch.cat(blocks)[:features] * lengths)

    def forward(self, x: Float[Tensor, "... head_dim"]) -> Float[Tensor, "... features"]:
        """Features of queries or keys.

        Raises:
            ValueError: another width than the rows were drawn for.
        """
        if x.shape[-1] != self.rows.shape[1]:
            raise ValueError(f"x must have width {self.rows.shape[1]}, got {x.shape[-1]}")
        return random_exponents(x, self.rows).exp() / math.sqrt(self.rows.shape[0])


def check_heads(dim: int, heads: int) -> int:
    """The width of a head; raises ``ValueError`` where ``dim`` is not a multiple of ``heads``."""
    if heads < 1 or dim < 1 or dim % heads:
        raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
    return dim // heads


def check_denominator(denominator: Tensor, features: nn.Module) -> None:
    """Raise ``ValueError`` where a sum of kernel values is not above zero (not looked at in compiled code)."""
    if not torch.compiler.is_compiling() and not (denominator > 0).all():
        worst = float(denominator.detach().min())
        name = type(features).__name__
        raise ValueError(f"features must give a denominator above 0 at every node, {name} gave {worst:.3g}")


class FullAttention(nn.Module):
    """Multi-head softmax attention among the nodes of each graph; time quadratic in nodes."""

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.dim = dim
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes."""
        check_nodes(x, self.dim)
        padded, real, place = Segments.of(x, batch, graphs).dense(self.qkv(x))
        query, key, value = padded.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if real.shape[0] == 1 else real[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, place))


class LinearAttention(nn.Module):
    """Attention with the kernel phi(q).phi(k), linear in nodes: linear transformer or Performer by the feature map.

    y_i = phi(q_i)^T sum_j phi(k_j) v_j^T / phi(q_i)^T sum_j phi(k_j) per head, then a linear map.

    Args:
        dim: width of nodes, a multiple of ``heads``.
        features: the map phi from (..., head_dim) to (..., m); :class:`EluFeatures` by default.

    Raises:
        ValueError: ``dim`` not a multiple of ``heads``; in ``forward``, a denominator that is not positive.
    """

    def __init__(self, dim: int, heads: int = 1, features: nn.Module | None = None) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.dim = dim
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.features = EluFeatures() if features is None else features
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes."""
        check_nodes(x, self.dim)
        padded, real, place = Segments.of(x, batch, graphs).dense(self.qkv(x))
        query, key, value = padded.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query, key = self.features(query), self.features(key) * real[:, None, :, None]
        summed = key.transpose(-1, -2) @ value
        denominator = query @ key.sum(-2).unsqueeze(-1)
        flat = (query @ summed).transpose(1, 2).flatten(0, 1).index_select(0, place)
        weight = denominator.transpose(1, 2).flatten(0, 1).index_select(0, place)
        check_denominator(weight, self.features)
        return self.out((flat / weight).flatten(1))
