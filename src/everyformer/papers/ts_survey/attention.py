"""Encoder layers whose attention looks at a few tokens: hashing (Reformer) and exponential steps (LogSparse)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.series_layers import EncoderLayer, check_positive


def lsh_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens value_dim"],
    bucket: int = 4,
    hashes: int = 4,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Attention among tokens of like hash, queries being their own keys (Reformer, arXiv 2001.04451, section 2).

    Each round sorts the tokens by a random hash, cuts them into pieces of ``bucket``, and lets each attend to its piece
    and the one before; the rounds are weighed by their normalisers. A token attends to itself only in default of others.

    Raises:
        ValueError: tokens that are no multiple of ``2 * bucket``.
    """
    check_positive(bucket=bucket, hashes=hashes)
    tokens, dim = query.shape[-2:]
    if tokens % (2 * bucket):
        raise ValueError(f"tokens must be a multiple of 2 * bucket={2 * bucket}, got {tokens}")
    pieces = tokens // bucket
    rotation = torch.randn(hashes, dim, pieces // 2, device=query.device, dtype=query.dtype)
    turned = query.detach().unsqueeze(2) @ rotation  # (batch, heads, hashes, tokens, pieces / 2)
    hashed = torch.cat([turned, -turned], dim=-1).argmax(dim=-1)
    order = hashed.mul(tokens).add(torch.arange(tokens, device=query.device)).argsort(dim=-1)

    def cut(x: Tensor) -> Tensor:
        index = order.unsqueeze(-1).expand(*order.shape, x.shape[-1])
        return x.unsqueeze(2).expand(-1, -1, hashes, -1, -1).gather(3, index).unflatten(3, (pieces, bucket))

    def and_before(x: Tensor) -> Tensor:
        return torch.cat([x.roll(1, dims=3), x], dim=4)

    asked, values = cut(query), and_before(cut(value))
    scores = asked @ and_before(F.normalize(asked, dim=-1)).transpose(-2, -1) * dim**-0.5
    place = order.unflatten(3, (pieces, bucket))
    itself = place.unsqueeze(-1) == and_before(place).unsqueeze(-2)
    scores = scores.masked_fill(itself, -5e4)
    normaliser = scores.logsumexp(dim=-1, keepdim=True)
    found = ((scores - normaliser).exp() @ values).flatten(3, 4)

    back = order.argsort(dim=-1).unsqueeze(-1)
    found = found.gather(3, back.expand(-1, -1, -1, -1, found.shape[-1]))
    rounds = normaliser.flatten(3, 4).gather(3, back).softmax(dim=2)
    return (found * rounds).sum(dim=2)


def log_sparse_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens value_dim"],
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Causal attention to the tokens 0, 1, 2, 4, 8, ... steps back (LogSparse, arXiv 1907.00235, section 4.2)."""
    tokens = query.shape[-2]
    back = [0, *(2**power for power in range((tokens - 1).bit_length()))]
    query = query * query.shape[-1] ** -0.5
    scores = torch.stack(
        [
            F.pad((query[..., step:, :] * key[..., : tokens - step, :]).sum(-1), (step, 0), value=-torch.inf)
            for step in back
        ],
        dim=-1,
    )
    weights = scores.softmax(dim=-1).unsqueeze(-1)
    out = weights[..., 0, :] * value
    for index, step in enumerate(back[1:], start=1):
        out = out + F.pad(weights[..., step:, index, :] * value[..., : tokens - step, :], (0, 0, step, 0))
    return out


class LSHLayer(EncoderLayer):
    """Post-norm layer with :func:`lsh_attention`; the tokens are padded with zeros to fit the buckets."""

    def __init__(self, dim: int, heads: int, ff: int, dropout: float, bucket: int = 4, hashes: int = 4) -> None:
        super().__init__(dim, heads, ff, "full", dropout, "gelu")
        check_positive(bucket=bucket, hashes=hashes)
        self.bucket, self.hashes = bucket, hashes
        self.qkv = nn.Linear(dim, 2 * dim, bias=False)

    def attend(self, x: Tensor, return_attention: bool) -> tuple[Tensor, None]:
        """The attention branch; weights are not kept."""
        tokens = x.shape[1]
        padded = F.pad(x, (0, 0, 0, -tokens % (2 * self.bucket)))
        query, value = self.qkv(padded).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = lsh_attention(query, value, self.bucket, self.hashes)[:, :, :tokens]
        return self.out(mixed.transpose(1, 2).flatten(2)), None


class LogSparseLayer(EncoderLayer):
    """Post-norm layer with :func:`log_sparse_attention`; queries and keys see two steps back by a causal convolution."""

    def __init__(self, dim: int, heads: int, ff: int, dropout: float) -> None:
        super().__init__(dim, heads, ff, "full", dropout, "gelu")
        self.qkv = nn.Linear(dim, dim)  # of the values alone
        self.local = nn.Conv1d(dim, 2 * dim, 3)

    def attend(self, x: Tensor, return_attention: bool) -> tuple[Tensor, None]:
        """The attention branch; weights are not kept."""
        both = self.local(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        both = both.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        value = self.qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out(log_sparse_attention(both[0], both[1], value).transpose(1, 2).flatten(2)), None
