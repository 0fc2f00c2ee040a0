"""A small language model: decoder, encoder and encoder-decoder with RMSNorm, rotary positions and SwiGLU.

The blocks of LLaMA (arXiv 2302.13971) and Qwen2 (arXiv 2407.10671), which the language papers train and change. Weights
of query, key and value stand in one matrix; positions rotate halves of a head, as in transformers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Mask = Bool[Tensor, "#batch #heads queries keys"] | Float[Tensor, "#batch #heads queries keys"]


def rotary(
    positions: Int[Tensor, " tokens"], head_dim: int, theta: float = 10_000.0
) -> Float[Tensor, "2 tokens head_dim"]:
    """Cosines and signed sines of the rotary angles (RoFormer, arXiv 2104.09864) of some positions, for :func:`rotate`.

    The halves of a head have the same angles; the first half's sines are negative, as a turn wants them.
    """
    rates = theta ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angles = positions.float()[:, None] * rates
    return torch.stack([angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], dim=-1)])


def rotate(
    x: Float[Tensor, "batch heads tokens head_dim"], table: Float[Tensor, "2 tokens head_dim"]
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """``x`` turned by its positions' angles."""
    return x * table[0] + x.roll(x.shape[-1] // 2, dims=-1) * table[1]


class Cache:
    """Keys and values of the tokens read so far, with room for ``length`` tokens; written in place, so without gradients."""

    def __init__(self, layers: int, batch: int, kv_heads: int, length: int, head_dim: int, like: Tensor) -> None:
        self.tensors = like.new_empty(layers, 2, batch, kv_heads, length, head_dim)
        self.length = 0  # tokens in it

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer from the first token to these newest."""
        end = self.length + keys.shape[2]
        kept_keys, kept_values = self.tensors[layer, 0], self.tensors[layer, 1]
        kept_keys[:, :, self.length : end] = keys
        kept_values[:, :, self.length : end] = values
        return kept_keys[:, :, :end], kept_values[:, :, :end]


class Attention(nn.Module):
    """Self-attention over rotary positions, with as many or fewer key-value heads (arXiv 2305.13245)."""

    def __init__(self, dim: int, heads: int, *, kv_heads: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads {heads}, got {dim}")
        if heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads {self.kv_heads}, got {heads}")
        self.head_dim = dim // heads
        if self.head_dim % 2:
            raise ValueError(f"dim / heads must be even for rotary positions, got {self.head_dim}")
        self.qkv = nn.Linear(dim, (heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        table: Float[Tensor, "2 tokens head_dim"],
        *,
        mask: Mask | None = None,
        causal: bool = False,
        cache: tuple[Cache, int] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """``mask``: what may be seen, or what is added to the scores; ``cache``: with the number of this layer."""
        query, key, value = self.project(x, table)
        if cache is not None:
            key, value = cache[0].extended(cache[1], key, value)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=self.kv_heads != self.heads
        )
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def project(
        self, x: Float[Tensor, "batch tokens dim"], table: Float[Tensor, "2 *batch tokens head_dim"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (batch, its heads, tokens, head_dim), the first two turned by their positions."""
        projected = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        turned = rotate(projected[:, : self.heads + self.kv_heads], table)
        return turned[:, : self.heads], turned[:, self.heads :], projected[:, self.heads + self.kv_heads :]


class CrossAttention(nn.Module):
    """Attention from one sequence to another, without positions."""

    def __init__(self, dim: int, heads: int, *, context_dim: int | None = None) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(context_dim or dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def keys_values(
        self, context: Float[Tensor, "batch context_tokens context_dim"]
    ) -> tuple[
        Float[Tensor, "batch heads context_tokens head_dim"], Float[Tensor, "batch heads context_tokens head_dim"]
    ]:
        """What is the same for every query, to be computed once where a sequence is written token by token."""
        key, value = self.kv(context).unflatten(-1, (-1, self.head_dim)).transpose(1, 2).chunk(2, dim=1)
        return key, value

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        keys_values: tuple[Tensor, Tensor],
        *,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        query = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, *keys_values, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """The gated feed-forward part (arXiv 2002.05202); gate and value stand in one matrix."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, attention to a context if ``cross``, feed-forward; each normalised before and added."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        kv_heads: int | None = None,
        bias: bool = False,
        cross: bool = False,
        context_dim: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps)
        self.attention = Attention(dim, heads, kv_heads=kv_heads, bias=bias)
        self.cross_norm = nn.RMSNorm(dim, eps) if cross else None
        self.cross = CrossAttention(dim, heads, context_dim=context_dim) if cross else None
        self.mlp_norm = nn.RMSNorm(dim, eps)
        self.mlp = SwiGLU(dim, hidden)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        table: Float[Tensor, "2 tokens head_dim"],
        *,
        mask: Mask | None = None,
        causal: bool = False,
        cache: tuple[Cache, int] | None = None,
        context: tuple[Tensor, Tensor] | None = None,
        context_mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """``context``: keys and values by :meth:`CrossAttention.keys_values` of this block."""
        x = x + self.attention(self.attention_norm(x), table, mask=mask, causal=causal, cache=cache)
        if self.cross is not None and self.cross_norm is not None:
            if context is None:
                raise ValueError("context must be given to a block that attends to one")
            x = x + self.cross(self.cross_norm(x), context, mask=context_mask)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


def hidden_width(dim: int) -> int:
    """Width of a SwiGLU with the parameters of a plain four-fold one: 8/3 of ``dim``, a multiple of 16."""
    return 16 * math.ceil(8 * dim / 3 / 16)


class LanguageModel(nn.Module):
    """Tokens to logits: embedding, blocks, norm, head. ``causal=False`` sees both sides, for masked language models.

    Args:
        vocabulary, dim, depth, heads: sizes.
        hidden: width of the feed-forward part; :func:`hidden_width` by default.
        kv_heads: key-value heads, as many as ``heads`` by default.
        longest: tokens of the longest sequence.
        tied: the head's weights are the embedding's.
        bias: of query, key and value, as in Qwen2.

    Raises:
        ValueError: sizes that do not divide, or more tokens than ``longest``.
    """

    table: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        kv_heads: int | None = None,
        longest: int = 2048,
        causal: bool = True,
        tied: bool = True,
        bias: bool = False,
        theta: float = 10_000.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.vocabulary, self.longest, self.causal = vocabulary, longest, causal
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden or hidden_width(dim), kv_heads=kv_heads, bias=bias, eps=eps) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        initialise(self, depth)
        if tied:
            self.head.weight = self.embedding.weight
        self.register_buffer("table", rotary(torch.arange(longest), dim // heads, theta), persistent=False)

    def hidden(
        self,
        tokens: Int[Tensor, "batch tokens"] | None = None,
        *,
        embedded: Float[Tensor, "batch tokens dim"] | None = None,
        mask: Mask | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """What the head reads: :meth:`states`, normalised."""
        return self.norm(self.states(tokens, embedded=embedded, mask=mask, cache=cache))  # type: ignore[no-any-return]

    def states(
        self,
        tokens: Int[Tensor, "batch tokens"] | None = None,
        *,
        embedded: Float[Tensor, "batch tokens dim"] | None = None,
        mask: Mask | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The last block's output, before the final norm. ``embedded`` stands for tokens if given.

        ``mask`` takes the place of ``causal``. With a cache, tokens are those that follow what is in it.
        """
        x = self.embedding(tokens) if embedded is None else embedded
        start, count = (cache.length if cache else 0), x.shape[1]
        if start + count > self.longest:
            raise ValueError(f"tokens must be at most longest {self.longest}, got {start + count}")
        causal = self.causal and mask is None and count > 1
        if causal and start:
            causal, mask = False, torch.ones(count, start + count, dtype=torch.bool, device=x.device).tril(start)
        table = self.table[:, start : start + count].to(x.dtype)
        for number, block in enumerate(self.blocks):
            x = block(x, table, mask=mask, causal=causal, cache=(cache, number) if cache else None)
        if cache is not None:
            cache.length += count
        return x

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"] | None = None,
        *,
        embedded: Float[Tensor, "batch tokens dim"] | None = None,
        mask: Mask | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        return self.head(self.hidden(tokens, embedded=embedded, mask=mask, cache=cache))  # type: ignore[no-any-return]

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache for ``batch`` sequences of up to ``length`` tokens."""
        first: Attention = self.blocks[0].attention  # type: ignore[assignment, union-attr]
        return Cache(len(self.blocks), batch, first.kv_heads, length, first.head_dim, self.norm.weight)

    @torch.no_grad()
    def generate(
        self,
        prompt: Int[Tensor, "batch tokens"],
        count: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch tokens+count"]:
        """``count`` more tokens, one at a time; ``temperature`` 0 takes the likeliest.

        Raises:
            ValueError: a model that is not causal, an empty prompt, a token outside the vocabulary, a negative
                temperature, or more tokens than ``longest``.
        """
        check_tokens(prompt, self.vocabulary, "prompt")
        if not self.causal:
            raise ValueError("causal must be True for a model that generates from left to right")
        if prompt.shape[1] + count > self.longest:
            raise ValueError(f"prompt and count must be at most {self.longest}, got {prompt.shape[1]} + {count}")
        cache = self.cache(len(prompt), prompt.shape[1] + count)
        tokens, newest = [prompt], prompt
        for _ in range(count):
            logits = self.head(self.hidden(newest, cache=cache)[:, -1])
            newest = draw(logits, temperature=temperature, top_k=top_k, generator=generator)[:, None]
            tokens.append(newest)
        return torch.cat(tokens, dim=1)


class EncoderDecoder(nn.Module):
    """Reads a source from both sides and gives logits of a target's tokens; both share one vocabulary and embedding.

    Args:
        encoder_depth, decoder_depth: blocks.
        causal: whether a target's token sees only those before it; False for targets that are filled in in any order.
        others: as in :class:`LanguageModel`.
    """

    table: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        dim: int,
        encoder_depth: int,
        decoder_depth: int,
        heads: int,
        hidden: int | None = None,
        longest: int = 2048,
        causal: bool = True,
        theta: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.vocabulary, self.longest, self.causal = vocabulary, longest, causal
        width = hidden or hidden_width(dim)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.encoder = nn.ModuleList(Block(dim, heads, width) for _ in range(encoder_depth))
        self.encoder_norm = nn.RMSNorm(dim, 1e-6)
        self.decoder = nn.ModuleList(Block(dim, heads, width, cross=True) for _ in range(decoder_depth))
        self.norm = nn.RMSNorm(dim, 1e-6)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        initialise(self, encoder_depth + decoder_depth)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", rotary(torch.arange(longest), dim // heads, theta), persistent=False)

    def encode(
        self, source: Int[Tensor, "batch source"], mask: Mask | None = None
    ) -> Float[Tensor, "batch source dim"]:
        """The source as vectors; ``mask`` hides padding."""
        self._check(source, "source")
        x = self.embedding(source)
        table = self.table[:, : source.shape[1]].to(x.dtype)
        for block in self.encoder:
            x = block(x, table, mask=mask)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def decode(
        self,
        target: Int[Tensor, "batch target"],
        encoded: Float[Tensor, "batch source dim"],
        *,
        mask: Mask | None = None,
        source_mask: Mask | None = None,
    ) -> Float[Tensor, "batch target vocabulary"]:
        """Logits at each place of the target."""
        self._check(target, "target")
        x = self.embedding(target)
        table = self.table[:, : target.shape[1]].to(x.dtype)
        for block in self.decoder:
            context = block.cross.keys_values(encoded)  # type: ignore[operator, union-attr]
            causal = self.causal and mask is None
            x = block(x, table, mask=mask, causal=causal, context=context, context_mask=source_mask)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def forward(
        self,
        source: Int[Tensor, "batch source"],
        target: Int[Tensor, "batch target"],
        *,
        source_mask: Mask | None = None,
    ) -> Float[Tensor, "batch target vocabulary"]:
        return self.decode(target, self.encode(source, source_mask), source_mask=source_mask)

    def _check(self, tokens: Tensor, name: str) -> None:
        if tokens.shape[1] > self.longest:
            raise ValueError(f"{name} must have at most longest {self.longest} tokens, got {tokens.shape[1]}")


def initialise(model: nn.Module, depth: int) -> None:
    """Normal weights of 0.02; those that add to the residual stream smaller, by the root of how many add (GPT-2)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            adds = name.rsplit(".", 1)[-1] in ("out", "down")
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if adds else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def draw(
    logits: Float[Tensor, "*batch vocabulary"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*batch"]:
    """One token of each row of logits; ``temperature`` 0 takes the likeliest.

    Raises:
        ValueError: ``temperature`` below 0 or ``top_k`` below 1.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    rows = logits.softmax(-1).flatten(0, -2)
    return torch.multinomial(rows, 1, generator=generator).view(logits.shape[:-1])


def check_tokens(tokens: Tensor, vocabulary: int, name: str) -> None:
    """Raise a ValueError that names ``name`` where tokens are empty, of another shape, or outside the vocabulary."""
    if tokens.dim() != 2 or tokens.shape[1] == 0 or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be whole numbers (batch, tokens), got {tokens.dtype} {tuple(tokens.shape)}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(f"{name} must hold tokens from 0 to {vocabulary - 1}, got {low} to {high}")
