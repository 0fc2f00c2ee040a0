"""PAST, the authors' encoder-decoder for MLM-U: it hides tokens by attention masks instead of mask tokens.

The encoder reads the prompt and the path, and nobody attends to what is hidden. The decoder has no self-attention and
reads no tokens: each place asks with one learned vector, turned by the angle of its position, what the visible tokens say.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from everyformer.parts.language import rotary, rotate


class Layer(nn.Module):
    """Attention over visible tokens and a feed-forward part, each normalised before and added.

    Keys and values come from what is encoded, in a decoder; both queries and keys have rotary positions there too.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.attention_norm = nn.LayerNorm(dim, bias=bias)
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.mlp_norm = nn.LayerNorm(dim, bias=bias)
        self.up = nn.Linear(dim, 4 * dim, bias=bias)
        self.down = nn.Linear(4 * dim, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        visible: Bool[Tensor, "batch 1 1 tokens"],
        table: Float[Tensor, "2 tokens head_dim"],
        encoded: Float[Tensor, "batch tokens dim"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """The queries are the last places of ``tokens``."""
        normed = self.attention_norm(x)
        query = self._heads(self.query(normed))
        key, value = (self._heads(part) for part in self.key_value(normed if encoded is None else encoded).chunk(2, -1))
        query = rotate(query, table[:, -x.shape[1] :])
        mixed = F.scaled_dot_product_attention(query, rotate(key, table), value, attn_mask=visible)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))  # type: ignore[no-any-return]

    def _heads(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class PAST(nn.Module):
    """The encoder-decoder of the paper's MLM-U models (authors' ``recipe/models/past.py``).

    Args:
        vocabulary, dim, heads: sizes.
        depth: layers of the encoder, and as many of the decoder.
        hidden: tokens that nobody attends to where they stand, such as mask and padding.
        longest: tokens of the longest prompt and path together.
        tied: the head's weights are the embedding's.
        bias: of all maps and norms.

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
        hidden: Sequence[int] = (),
        longest: int = 2048,
        tied: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if dim % heads or dim // heads % 2:
            raise ValueError(f"dim must be an even multiple of heads {heads}, got {dim}")
        if not all(0 <= token < vocabulary for token in hidden):
            raise ValueError(f"hidden must be tokens below vocabulary {vocabulary}, got {tuple(hidden)}")
        self.vocabulary, self.longest, self.hidden_tokens = vocabulary, longest, tuple(hidden)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.question = nn.Parameter(torch.randn(dim))
        self.encoder = nn.ModuleList(Layer(dim, heads, bias=bias) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim, bias=bias)
        self.decoder = nn.ModuleList(Layer(dim, heads, bias=bias) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.head = nn.Linear(dim, vocabulary)
        if tied:
            self.head.weight = self.embedding.weight
        self.register_buffer("table", rotary(torch.arange(longest), dim // heads), persistent=False)

    def forward(
        self, prompt: Int[Tensor, "batch prompt"], path: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits at each place of the path, hidden or not; the prompt must show at least one token."""
        tokens = torch.cat([prompt, path], 1)
        visible = torch.ones_like(tokens, dtype=torch.bool)
        for token in self.hidden_tokens:
            visible &= tokens != token
        return self.predict(tokens, visible, first=prompt.shape[1])

    def predict(
        self, tokens: Int[Tensor, "batch tokens"], visible: Bool[Tensor, "batch tokens"], *, first: int = 0
    ) -> Float[Tensor, "batch places vocabulary"]:
        """Logits of the places from ``first`` on, by what is visible."""
        count = tokens.shape[1]
        if count > self.longest:
            raise ValueError(f"prompt and path must have at most longest {self.longest} tokens, got {count}")
        x = self.embedding(tokens)
        table, mask = self.table[:, :count].to(x.dtype), visible[:, None, None]
        for layer in self.encoder:
            x = layer(x, mask, table)
        encoded = self.encoder_norm(x)
        x = self.question.expand(len(tokens), count - first, -1)
        for layer in self.decoder:
            x = layer(x, mask, table, encoded)
        return self.head(self.norm(x))  # type: ignore[no-any-return]
