"""BigBird (arXiv 2007.14062): blocks of tokens see the first block, their neighbours, and some at random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from everyformer.parts.mixers.base import Cache, Mixer, split_heads
from everyformer.parts.mixers.blocks import attend, cut


class BigBirdAttention(Mixer):
    """Attention between blocks: global, neighbouring and random ones; all heads have the same random blocks.

    Both ways, the global blocks see all tokens (the paper's internal transformer construction). Causal, a block sees
    the global ones, the one before it, and random ones among those before.

    Args:
        block: tokens of a block.
        global_blocks: how many of the first blocks are seen by all.
        random_blocks: how many others a block sees; fewer where these are its neighbours or global anyway.
        seed: of the random blocks, which are the same at every call.

    Raises:
        ValueError: a size below 1, or negative numbers of blocks.
    """

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None,
        block: int = 64, global_blocks: int = 1, random_blocks: int = 3, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if block < 1 or global_blocks < 0 or random_blocks < 0:
            raise ValueError(
                "block must be at least 1, global_blocks and random_blocks at least 0, "
                f"got {block}, {global_blocks} and {random_blocks}"
            )
        self.block, self.global_blocks, self.random_blocks, self.seed = block, global_blocks, random_blocks, seed
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        batch, tokens = x.shape[:2]
        projected = self.qkv(x)
        query, key, value = cut(projected.unflatten(-1, (3, self.heads, -1)), self.block).unbind(3)
        real = torch.ones_like(x[:1, :, 0], dtype=torch.bool) if mask is None else mask
        seen = self.seen(real)  # rows of the mask, blocks, blocks that are seen
        real = cut(real, self.block)
        rows, blocks, slots = seen.shape
        index = (seen.clamp(min=0) + torch.arange(rows, device=x.device)[:, None, None] * blocks).flatten()
        keys_real = real.flatten(0, 1)[index].view(rows, blocks, slots, self.block) & (seen >= 0)[..., None]
        own = torch.eye(self.block, dtype=torch.bool, device=x.device)[:, None]
        itself = (seen == torch.arange(blocks, device=x.device)[:, None])[:, :, None, :, None]
        allowed = keys_real[:, :, None]
        if self.causal:
            order = torch.ones_like(own[:, 0]).tril()[:, None]
            allowed = allowed & (order | ~itself)
        allowed = (allowed | (itself & own)).flatten(3)
        if rows == batch:
            key, value = (part.flatten(0, 1)[index].unflatten(0, (batch, blocks, slots)) for part in (key, value))
        else:
            key, value = (part[:, index].unflatten(1, (blocks, slots)) for part in (key, value))
        mixed = attend(query, key.flatten(2, 3), value.flatten(2, 3), allowed)[:, :tokens].flatten(2)
        first = min(self.global_blocks * self.block, tokens)
        if first and not self.causal:
            query, key, value = (split_heads(part, self.heads) for part in projected.chunk(3, dim=-1))
            everything = None if mask is None else mask[:, None, None]
            summary = F.scaled_dot_product_attention(query[:, :, :first], key, value, attn_mask=everything)
            mixed = torch.cat([summary.transpose(1, 2).flatten(2), mixed[:, first:]], dim=1)
        return self.out(mixed)  # type: ignore[no-any-return]

    def seen(self, real: Bool[Tensor, "rows tokens"]) -> Int[Tensor, "rows blocks slots"]:
        """The blocks that every block sees, -1 where there is none or it is there already."""
        places = torch.arange(1, real.shape[1] + 1, device=real.device)
        count = -(-(real * places).amax(dim=1) // self.block)  # blocks up to a row's last real token
        own = torch.arange(-(-real.shape[1] // self.block), device=real.device)
        wide = own.expand(len(real), -1)
        choice = own[None] if self.causal else count[:, None].expand_as(wide)
        chance = self._chance(len(own), real.device)
        random = (chance * choice[..., None]).long()
        fixed = torch.arange(self.global_blocks, device=real.device).expand(*wide.shape, -1)
        near = wide[..., None] + torch.arange(-1, 1 if self.causal else 2, device=real.device)
        seen = torch.cat([fixed, near, random.expand(len(real), -1, -1)], dim=-1)
        last = wide[..., None] if self.causal else count.clamp(min=1)[:, None, None] - 1
        # A block past a row's last real token still sees itself, for its softmax to be a number.
        there = (seen >= 0) & ((seen <= last) | (seen == wide[..., None]))
        again = (seen[..., :, None] == seen[..., None, :]).tril(-1).any(dim=-1)
        return torch.where(there & ~again, seen, -1)

    def _chance(self, blocks: int, device: torch.device) -> Float[Tensor, "blocks random"]:
        """Numbers from 0 to 1 that depend on the seed and their place alone, not on how many there are."""
        bits = torch.arange(blocks * self.random_blocks, device=device) + 0x9E3779B9 * (self.seed + 1)
        for _ in range(2):  # a mixing of 32 bits
            bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
        bits = bits ^ (bits >> 16)
        return (bits.double() / 2**32).view(blocks, self.random_blocks)
