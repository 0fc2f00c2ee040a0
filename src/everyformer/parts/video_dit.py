"""A small diffusion transformer of videos, steered by a caption.

A video is cut into patches, frame by frame, and every patch attends to every other one of the whole video. Where a patch
is in time and space is told by rotating queries and keys (arXiv 2104.09864) by angles of its frame, row and column, as in
Wan (arXiv 2503.20314) and CogVideoX (arXiv 2408.06072). The caption comes in by cross-attention, the timestep by adaptive
layer norm whose gates start at zero, so that every block starts as the identity (arXiv 2212.09748).

What self-attention does with its rotated queries and keys is a callable of its own, as in :mod:`everyformer.parts.dit`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.parts.dit import Attend, SelfAttention, modulate, sinusoids

Grid = tuple[int, int, int]
"""Frames, rows and columns of tokens."""


def coordinates(grid: Grid, device: torch.device | str | None = None) -> Int[Tensor, "tokens 3"]:
    """Frame, row and column of every token of a grid; columns run fastest."""
    return torch.cartesian_prod(*(torch.arange(count, device=device) for count in grid))


class Rotary3D(nn.Module):
    """Cosines and sines of the angles that (frame, row, column) turn the pairs of a head's features by.

    Row and column take a third of the pairs each, rounded down, and the frame takes the others; the frequencies of each
    fall from 1 to nearly 1 / ``longest``. Raises ``ValueError`` if ``head_dim`` is odd or smaller than 6.
    """

    def __init__(self, head_dim: int, *, longest: float = 10_000.0) -> None:
        super().__init__()
        if head_dim < 6 or head_dim % 2:
            raise ValueError(f"head_dim must be even and at least 6 for three coordinates, got {head_dim}")
        self.pairs = (head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6)
        self.longest = longest

    def forward(
        self, where: Float[Tensor, "tokens 3"] | Int[Tensor, "tokens 3"]
    ) -> tuple[Float[Tensor, "tokens pairs"], Float[Tensor, "tokens pairs"]]:
        angles = []
        for axis, pairs in enumerate(self.pairs):
            frequencies = self.longest ** -(torch.arange(pairs, device=where.device) / pairs)
            angles.append(where[:, axis, None].float() * frequencies)
        turned = torch.cat(angles, dim=-1)
        return turned.cos(), turned.sin()


def rotate(
    x: Float[Tensor, "batch heads tokens head_dim"],
    cos: Float[Tensor, "tokens pairs"],
    sin: Float[Tensor, "tokens pairs"],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Turn neighbouring features by the angles of their token (arXiv 2104.09864, equation 34)."""
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x.dtype)


class RotarySelfAttention(SelfAttention):
    """Self-attention whose queries and keys are rotated before ``attend`` sees them."""

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch tokens dim"], rotary: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.out(rearrange(self.attend(rotate(q, *rotary), rotate(k, *rotary), v), "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Attention of video tokens to the words of a caption; ``attend`` may be replaced."""

    def __init__(self, dim: int, *, heads: int, text_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(text_dim, 2 * dim)
        self.attend: Attend = F.scaled_dot_product_attention
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], words: Float[Tensor, "batch words text_dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.kv(words), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return self.out(rearrange(self.attend(q, k, v), "b h n d -> b n (h d)"))


class VideoBlock(nn.Module):
    """Self-attention, cross-attention to the caption (if there is one), and an MLP; it starts as the identity."""

    def __init__(self, dim: int, *, heads: int, text_dim: int, mlp_ratio: float, attend: Attend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attention = RotarySelfAttention(dim, heads=heads, attend=attend)
        if text_dim:
            self.norm_text = nn.LayerNorm(dim, eps=1e-6)
            self.cross = CrossAttention(dim, heads=heads, text_dim=text_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        condition: Float[Tensor, "batch dim"],
        rotary: tuple[Tensor, Tensor],
        words: Float[Tensor, "batch words text_dim"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaptive(condition).chunk(6, dim=-1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1), rotary)
        if words is not None:
            x = x + self.cross(self.norm_text(x), words)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class VideoDiT(nn.Module):
    """Diffusion transformer of videos with full attention over space and time.

    Takes videos (batch, frames, channels, height, width) of any number of frames and any size that ``patch`` divides,
    timesteps (batch,) between 0 (data) and 1000 (noise), the convention of diffusers' schedulers, and embedded captions
    (batch, words, text_dim); gives (batch, frames, out_channels, height, width). With ``text_dim=0`` there are no
    captions. Eight frames of 32 x 32 at patch 1 give 8,192 tokens.

    ``attention`` is called once per block with the head dimension and returns what that block applies to its rotated
    queries and keys and its values; ``None`` is softmax attention. ``longest`` sets the slowest rotation: about the
    longest distance in tokens that should be told apart.

    Raises ``ValueError`` for sizes that do not divide one another, and for inputs that do not fit the model.
    """

    def __init__(
        self,
        *,
        patch: int = 2,
        channels: int = 4,
        out_channels: int | None = None,
        text_dim: int = 0,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        longest: float = 10_000.0,
        attention: Callable[[int], Attend] | None = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got dim={dim} and heads={heads}")
        self.patch, self.channels, self.text_dim = patch, channels, text_dim
        self.out_channels = channels if out_channels is None else out_channels
        self.embed = nn.Linear(channels * patch**2, dim)
        self.rotary = Rotary3D(dim // heads, longest=longest)
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        attends = [
            F.scaled_dot_product_attention if attention is None else attention(dim // heads) for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(
            VideoBlock(dim, heads=heads, text_dim=text_dim, mlp_ratio=mlp_ratio, attend=a) for a in attends
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final = nn.Linear(dim, self.out_channels * patch**2)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for what transforms tokens, small for what conditions, zero for what must start as nothing."""
        blocks: list[VideoBlock] = list(self.blocks)  # type: ignore[arg-type]
        transforming = [self.embed]
        silent = [self.adaptive[1], self.final]
        for block in blocks:
            transforming += [block.attention.qkv, block.attention.out, block.mlp[0], block.mlp[2]]  # type: ignore[list-item]
            silent.append(block.adaptive[1])
            if self.text_dim:
                transforming += [block.cross.q, block.cross.kv]
                silent.append(block.cross.out)
        for layer in transforming:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.time[0], self.time[2]):  # type: ignore[assignment]
            nn.init.normal_(layer.weight, std=0.02)
        for layer in silent:  # type: ignore[assignment]
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def grid(self, video: Float[Tensor, "batch frames channels height width"]) -> Grid:
        """Frames, rows and columns of tokens that a video is cut into."""
        return video.shape[1], video.shape[3] // self.patch, video.shape[4] // self.patch

    def forward(
        self,
        video: Float[Tensor, "batch frames channels height width"],
        timesteps: Float[Tensor, "batch"],
        words: Float[Tensor, "batch words text_dim"] | None = None,
    ) -> Float[Tensor, "batch frames out_channels height width"]:
        self._check(video, timesteps, words)
        frames, rows, columns = self.grid(video)
        x = self.embed(rearrange(video, "b f c (h p) (w q) -> b (f h w) (c p q)", p=self.patch, q=self.patch))
        condition = self.time(sinusoids(timesteps, 256).to(x.dtype))
        rotary = self.rotary(coordinates((frames, rows, columns), device=video.device))
        for block in self.blocks:
            x = block(x, condition, rotary, words)
        shift, scale = self.adaptive(condition).chunk(2, dim=-1)
        x = self.final(modulate(self.norm(x), shift, scale))
        sizes = {"f": frames, "h": rows, "p": self.patch, "q": self.patch}
        return rearrange(x, "b (f h w) (c p q) -> b f c (h p) (w q)", **sizes)

    def _check(self, video: Tensor, timesteps: Tensor, words: Tensor | None) -> None:
        if video.dim() != 5 or video.shape[2] != self.channels:
            raise ValueError(f"video must be (batch, frames, {self.channels}, height, width), got {tuple(video.shape)}")
        if video.shape[3] % self.patch or video.shape[4] % self.patch:
            raise ValueError(
                f"video's height and width must be divisible by patch={self.patch}, got {tuple(video.shape[3:])}"
            )
        if timesteps.shape != video.shape[:1]:
            raise ValueError(f"timesteps must be (batch,) = ({len(video)},), got {tuple(timesteps.shape)}")
        if (words is not None) != bool(self.text_dim):
            given = "none" if words is None else "some"
            raise ValueError(f"words must be given exactly if text_dim is not 0; it is {self.text_dim}, got {given}")
        if words is not None and (words.dim() != 3 or words.shape[::2] != (len(video), self.text_dim)):
            raise ValueError(
                f"words must be (batch, words, text_dim) = ({len(video)}, words, {self.text_dim}), "
                f"got {tuple(words.shape)}"
            )
