"""The diffusion transformer (DiT) of Peebles & Xie, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748).

An image is cut into patches, each patch is a token, and blocks of self-attention and MLP are steered by the timestep
and the class through adaptive layer norm whose gates start at zero (adaLN-Zero), so that every block starts as the
identity. What a block does with its queries, keys and values is a callable of its own: pass ``attention`` to change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q, k, v) -> output``, each (batch, heads, tokens, head_dim)."""


def sinusoids(values: Float[Tensor, "*shape"], dim: int, *, longest: float = 10_000.0) -> Float[Tensor, "*shape dim"]:
    """Cosines and sines of ``values`` at ``dim / 2`` frequencies from 1 down to nearly 1 / ``longest``, in float32.

    Raises ``ValueError`` if ``dim`` is odd. Source: arXiv 1706.03762, section 3.5.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and positive, got {dim}")
    frequencies = torch.exp(-math.log(longest) / (dim // 2) * torch.arange(dim // 2, device=values.device))
    angles = values.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_positions(side: int, dim: int) -> Float[Tensor, "tokens dim"]:
    """Fixed positions of a ``side`` x ``side`` grid, row by row: half of ``dim`` for the column, half for the row."""
    if dim % 4:
        raise ValueError(f"dim must be divisible by 4 for positions in two dimensions, got {dim}")
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([sinusoids(columns.flatten(), dim // 2), sinusoids(rows.flatten(), dim // 2)], dim=-1)


def modulate(
    x: Float[Tensor, "batch tokens dim"], shift: Float[Tensor, "batch dim"], scale: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch tokens dim"]:
    """Adaptive layer norm's second half: the same shift and scale for every token of an image."""
    return x * (1 + scale[:, None]) + shift[:, None]


class SelfAttention(nn.Module):
    """Projections around ``attend``, which takes and gives (batch, heads, tokens, head_dim).

    Raises ``ValueError`` if ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, *, heads: int, attend: Attend = F.scaled_dot_product_attention) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got dim={dim} and heads={heads}")
        self.heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attend = attend
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.out(rearrange(self.attend(q, k, v), "b h n d -> b n (h d)"))


class Block(nn.Module):
    """A DiT block with adaLN-Zero: the condition gives shift, scale and gate for attention and for the MLP."""

    def __init__(
        self, dim: int, *, heads: int, mlp_ratio: float = 4.0, attend: Attend = F.scaled_dot_product_attention
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(dim, heads=heads, attend=attend)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], condition: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaptive(condition).chunk(6, dim=-1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """Diffusion transformer on square images (arXiv 2212.09748, section 3.2, adaLN-Zero).

    Takes images (batch, channels, image_size, image_size), timesteps (batch,) between 0 (data) and 1000 (noise), the
    convention of diffusers' schedulers, and class labels (batch,); gives (batch, out_channels, image_size, image_size).
    The label ``classes`` means "no class" (for classifier-free guidance), and so does leaving ``labels`` out.

    ``attention`` is called once per block with the head dimension and returns what that block applies to its queries,
    keys and values: a class such as ``SparseLinearAttention``, or ``lambda head_dim: my_function``. ``None`` is
    softmax attention. Patch 1 on 32 x 32 pixels gives 1,024 tokens.

    Raises ``ValueError`` for sizes that do not divide one another, and for inputs that do not fit the model.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch: int = 2,
        channels: int = 4,
        out_channels: int | None = None,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        classes: int = 0,
        attention: Callable[[int], Attend] | None = None,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size must be divisible by patch, got image_size={image_size} and patch={patch}")
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got dim={dim} and heads={heads}")
        self.image_size, self.patch, self.channels, self.classes = image_size, patch, channels, classes
        self.out_channels = channels if out_channels is None else out_channels
        self.embed = nn.Linear(channels * patch**2, dim)
        # Computed, not learnt: kept out of the state dict.
        self.register_buffer("positions", grid_positions(image_size // patch, dim), persistent=False)
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(classes + 1, dim) if classes else None
        attends = [
            F.scaled_dot_product_attention if attention is None else attention(dim // heads) for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(Block(dim, heads=heads, mlp_ratio=mlp_ratio, attend=a) for a in attends)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final = nn.Linear(dim, self.out_channels * patch**2)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for what transforms tokens, small for what conditions, zero for what must start as nothing."""
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        for block in blocks:
            for layer in (block.attention.qkv, block.attention.out, block.mlp[0], block.mlp[2]):
                nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        for conditioner in (self.time[0], self.time[2], *([self.label] if self.label is not None else [])):
            nn.init.normal_(conditioner.weight, std=0.02)  # type: ignore[arg-type]
        for silent in (*(block.adaptive[1] for block in blocks), self.adaptive[1], self.final):
            nn.init.zeros_(silent.weight)  # type: ignore[arg-type]
            nn.init.zeros_(silent.bias)  # type: ignore[arg-type]

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, "batch"],
        labels: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels height width"]:
        expected = (self.channels, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images must be (batch, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        if timesteps.shape != images.shape[:1]:
            raise ValueError(f"timesteps must be (batch,) = ({len(images)},), got {tuple(timesteps.shape)}")
        if labels is not None and self.label is None:
            raise ValueError("labels were given, but the model was built with classes=0")

        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        x = self.embed(patches) + self.positions
        condition = self.time(sinusoids(timesteps, 256).to(x.dtype))
        if self.label is not None:
            none = torch.full_like(timesteps, self.classes, dtype=torch.long)
            condition = condition + self.label(none if labels is None else labels)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.adaptive(condition).chunk(2, dim=-1)
        x = self.final(modulate(self.norm(x), shift, scale))
        side = self.image_size // self.patch
        return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=side, p=self.patch, q=self.patch)
