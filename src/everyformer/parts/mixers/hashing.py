"""Attention among tokens of the same hash: Reformer (arXiv 2001.04451)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer, join_heads, split_heads
from everyformer.parts.mixers.blocks import neighbours


class ReformerAttention(Mixer):
    """Attention by locality-sensitive hashing, with one projection for query and key (section 2).

    Tokens are sorted by hash and cut into chunks. Both ways, a chunk sees itself and the one before it. Causal, a token
    sees the ``chunk`` latest of its hash: chunks would let a later token move an earlier one's border. A token sees
    itself only where it sees no other. Rounds are weighed by their softmax's denominators (equation 6); a pair that
    meets in several rounds counts each time. Keys have the norm √head_dim, queries keep theirs.

    Args:
        chunk: tokens of a chunk.
        buckets: of a hash, an even number.
        rounds: hashes, each with rotations of its own, which stay as they are drawn; :meth:`redraw` draws others.

    Raises:
        ValueError: a chunk or rounds below 1, or buckets that are not even.
    """

    rotations: Tensor

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None,
        chunk: int = 64, buckets: int = 32, rounds: int = 4,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if chunk < 1 or rounds < 1:
            raise ValueError(f"chunk and rounds must be at least 1, got {chunk} and {rounds}")
        if buckets < 2 or buckets % 2:
            raise ValueError(f"buckets must be even and at least 2, got {buckets}")
        self.chunk, self.buckets, self.rounds = chunk, buckets, rounds
        self.query_key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.register_buffer("rotations", torch.empty(heads, self.head_dim, rounds * buckets // 2))
        self.redraw()

    def redraw(self) -> None:
        """Draw other rotations."""
        self.rotations.normal_()

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        query, value = (split_heads(part(x), self.heads) for part in (self.query_key, self.value))
        key = F.rms_norm(query, (self.head_dim,))
        mixed, weights = zip(
            *(self._round(query, key, value, bucket) for bucket in self.hashes(query, mask).unbind(2)), strict=True
        )
        if self.rounds == 1:
            return self.out(join_heads(mixed[0]))  # type: ignore[no-any-return]
        share = torch.stack(weights, dim=-1).softmax(dim=-1).to(value.dtype)
        total = sum(part * share[..., turn, None] for turn, part in enumerate(mixed))
        return self.out(join_heads(total))  # type: ignore[no-any-return,arg-type]

    @torch.no_grad()
    def hashes(
        self, query: Float[Tensor, "batch heads tokens head_dim"], mask: Bool[Tensor, "batch tokens"] | None
    ) -> Int[Tensor, "batch heads rounds tokens"]:
        """The bucket of every token in every round, the one after the last for tokens that are not real."""
        turned = (query @ self.rotations).unflatten(-1, (self.rounds, -1))
        bucket = torch.cat([turned, -turned], dim=-1).argmax(dim=-1).transpose(2, 3)
        return bucket if mask is None else torch.where(mask[:, None, None], bucket, self.buckets)

    def _round(
        self,
        query: Float[Tensor, "batch heads tokens head_dim"],
        key: Float[Tensor, "batch heads tokens head_dim"],
        value: Float[Tensor, "batch heads tokens head_dim"],
        bucket: Int[Tensor, "batch heads tokens"],
    ) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch heads tokens"]]:
        """What the tokens get in one round of hashes, and the logarithms of their denominators."""
        batch, tokens, chunk = len(query), query.shape[2], self.chunk
        bucket, order = (part.flatten(0, 1) for part in bucket.sort(dim=-1, stable=True))
        short = -tokens % chunk
        # Places past the last token are no token's: a bucket of their own, and copies of the first token.
        bucket = F.pad(bucket, (chunk, short), value=self.buckets)
        rows = torch.arange(len(order), device=order.device)[:, None] * tokens
        index = (F.pad(order, (0, short)) + rows).flatten()
        sorted_query, sorted_key, sorted_value = (
            part.flatten(0, 2)[index].view(len(order), -1, chunk, self.head_dim) for part in (query, key, value)
        )
        keys, values = (neighbours(F.pad(part, (0, 0, 0, 0, 1, 0)), 2) for part in (sorted_key, sorted_value))
        scores = sorted_query @ (keys * self.head_dim**-0.5).transpose(-2, -1)
        hidden, itself = self._hidden(bucket.unflatten(1, (-1, chunk)))
        last = max(-1e5, torch.finfo(scores.dtype).min)  # float16 does not reach as far
        scores = scores.masked_fill(hidden, float("-inf")).masked_fill(itself, last)
        weight = scores.logsumexp(dim=-1, keepdim=True)
        mixed = ((scores - weight).exp() @ values).flatten(1, 2)
        back = (
            order.argsort(dim=-1) + torch.arange(len(order), device=order.device)[:, None] * mixed.shape[1]
        ).flatten()
        shape = (batch, self.heads, tokens)
        return mixed.flatten(0, 1)[back].view(*shape, -1), weight.flatten()[back].view(shape)

    def _hidden(
        self, bucket: Int[Tensor, "rows chunks+1 chunk"]
    ) -> tuple[Bool[Tensor, "#rows chunks chunk seen"], Bool[Tensor, "chunk seen"]]:
        """Which sorted tokens a sorted token does not see, and which of them it is itself."""
        seen = neighbours(bucket, 2)
        place = torch.arange(self.chunk, device=bucket.device)[:, None]
        apart = place + self.chunk - torch.arange(2 * self.chunk, device=bucket.device)
        if self.causal:
            hidden = (seen[:, :, None] != bucket[:, 1:, :, None]) | (apart < 0) | (apart >= self.chunk)
        else:
            hidden = (seen == self.buckets)[:, :, None]
        return hidden, apart == 0
