"""VDT: a diffusion transformer whose blocks attend over time, then within a frame (arXiv 2305.13311, section 3.2).

A video is a grid of tokens (batch, frames, places, dim), a place being a patch of the frame. Each block first lets every
place look at itself in all frames, then is a DiT block inside each frame, steered by the timestep through adaLN-Zero.
Given frames enter without noise among the noisy ones (section 3.3): the tokens themselves are the condition, and nothing
in the network knows about masks.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.parts import dit
from everyformer.parts.dit import SelfAttention, sinusoids

FREQUENCIES = 256  # length of a timestep's sinusoids


def sines_first(values: Float[Tensor, "tokens"], dim: int) -> Float[Tensor, "tokens dim"]:
    """Sines, then cosines of positions: the order that VDT has from masked autoencoders."""
    return sinusoids(values, dim).roll(dim // 2, -1)


def grid(side: int, dim: int) -> Float[Tensor, "places dim"]:
    """Positions of ``side`` x ``side`` places, row by row: half of ``dim`` for the column, half for the row."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([sines_first(columns.flatten(), dim // 2), sines_first(rows.flatten(), dim // 2)], dim=-1)


class Block(dit.Block):
    """Attention over time, then a DiT block inside each frame.

    The attention over time is neither gated nor told the timestep, and has a linear layer more than the one in space: as
    the authors' code, where the paper's figure 2 lets the timestep in. ``temporal=False`` leaves the DiT block alone.
    """

    def __init__(self, dim: int, *, heads: int, mlp_ratio: float = 4.0, temporal: bool = True) -> None:
        super().__init__(dim, heads=heads, mlp_ratio=mlp_ratio)
        self.over_time = (
            nn.ModuleDict({
                "norm": nn.LayerNorm(dim),
                "attention": SelfAttention(dim, heads=heads),
                "out": nn.Linear(dim, dim),
            })
            if temporal
            else None
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch frames places dim"], condition: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch frames places dim"]:
        if self.over_time is not None:
            tracks = rearrange(self.over_time["norm"](x), "b f p d -> (b p) f d")
            tracks = self.over_time["out"](self.over_time["attention"](tracks))
            x = x + rearrange(tracks, "(b p) f d -> b f p d", b=len(x))

        # One shift, scale and gate for all frames and places of a video.
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaptive(condition)[:, None, None].chunk(6, dim=-1)
        frames = (self.norm1(x) * (1 + scale1) + shift1).flatten(0, 1)
        x = x + gate1 * self.attention(frames).view_as(x)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class VDT(nn.Module):
    """Video diffusion transformer.

    Takes videos (batch, frames, channels, image_size, image_size), of which some places may be noisy and others given,
    and timesteps (batch,) between 0 (data) and 1000 (noise); gives (batch, frames, out_channels, image_size, image_size).
    With ``learn_sigma`` the second half of ``out_channels`` says where the variance of a denoising step lies between its
    bounds (arXiv 2102.09672, equation 15). The sizes as they come are VDT-L/2's on latents of 256 x 256 pixels.

    Args:
        image_size, patch: side of a frame and of a patch, in pixels or latent cells.
        channels: channels of a frame.
        frames: frames of a video.
        dim, depth, heads, mlp_ratio: width of a token, blocks, attention heads, hidden width of the MLP / ``dim``.
        classes: with classes, labels (batch,) may be given; the label ``classes`` means none. A model of one class is the
            authors': its videos have no labels, and all of them are of the class.
        label_dropout: share of labels that training replaces by none, for classifier-free guidance.
        learn_sigma: learn the variance too.
        temporal: without it no frame sees another: an image model that knows which frame it draws.

    Raises:
        ValueError: sizes that do not divide one another or are not positive, inputs that do not fit the model.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch: int = 2,
        channels: int = 4,
        frames: int = 16,
        dim: int = 1152,
        depth: int = 28,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        classes: int = 0,
        label_dropout: float = 0.1,
        learn_sigma: bool = True,
        temporal: bool = True,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.options = options
        sizes = {"image_size": image_size, "patch": patch, "channels": channels, "frames": frames, "depth": depth}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if image_size % patch:
            raise ValueError(f"image_size must be divisible by patch, got image_size={image_size} and patch={patch}")
        if dim % 4:
            raise ValueError(f"dim must be divisible by 4 for positions in two dimensions, got {dim}")
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}")
        self.image_size, self.patch, self.channels, self.frames = image_size, patch, channels, frames
        self.classes, self.label_dropout, self.learn_sigma = classes, label_dropout, learn_sigma
        self.out_channels = channels * (1 + learn_sigma)
        self.embed = nn.Linear(channels * patch**2, dim)
        # Fixed, but part of a checkpoint: the authors' are interpolated when a model changes its size.
        self.register_buffer("places", grid(image_size // patch, dim))
        self.register_buffer("moments", sines_first(torch.arange(frames), dim))
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(classes + 1, dim) if classes else None
        self.blocks = nn.ModuleList(
            Block(dim, heads=heads, mlp_ratio=mlp_ratio, temporal=temporal) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final = nn.Linear(dim, self.out_channels * patch**2)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for what transforms tokens, small for what conditions, zero for what must start as nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for conditioner in (self.time[0], self.time[2], *([self.label] if self.label is not None else [])):
            nn.init.normal_(conditioner.weight, std=0.02)  # type: ignore[arg-type]
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        for silent in (*(block.adaptive[1] for block in blocks), self.adaptive[1], self.final):
            nn.init.zeros_(silent.weight)  # type: ignore[arg-type]

    def forward(
        self,
        video: Float[Tensor, "batch frames channels height width"],
        timesteps: Float[Tensor, "batch"],
        labels: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch frames out_channels height width"]:
        expected = (self.frames, self.channels, self.image_size, self.image_size)
        if tuple(video.shape[1:]) != expected:
            raise ValueError(f"video must be (batch, {', '.join(map(str, expected))}), got {tuple(video.shape)}")
        if timesteps.shape != video.shape[:1]:
            raise ValueError(f"timesteps must be (batch,) = ({len(video)},), got {tuple(timesteps.shape)}")
        if labels is not None and self.label is None:
            raise ValueError("labels were given, but the model was built with classes=0")
        if labels is not None and labels.shape != timesteps.shape:
            raise ValueError(f"labels must be (batch,) = ({len(video)},), got {tuple(labels.shape)}")

        patches = rearrange(video, "b f c (h p) (w q) -> b f (h w) (c p q)", p=self.patch, q=self.patch)
        x = self.embed(patches) + self.places + self.moments[:, None]  # type: ignore[index]
        condition = self.time(sinusoids(timesteps, FREQUENCIES).to(x.dtype))
        if self.label is not None:
            condition = condition + self.label(self._kept(labels, timesteps))
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.adaptive(condition)[:, None, None].chunk(2, dim=-1)
        x = self.final(self.norm(x) * (1 + scale) + shift)
        side = self.image_size // self.patch
        return rearrange(x, "b f (h w) (p q c) -> b f c (h p) (w q)", h=side, p=self.patch, q=self.patch)

    def _kept(self, labels: Tensor | None, timesteps: Tensor) -> Tensor:
        """The labels, some of them dropped in training; none given is the only class, or none of several."""
        if labels is None:
            labels = torch.full_like(timesteps, 0 if self.classes == 1 else self.classes, dtype=torch.long)
        if self.training and self.label_dropout > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.label_dropout
            labels = labels.masked_fill(dropped, self.classes)
        return labels


def vdt_s_2(**options: int | float | bool) -> VDT:
    """VDT-S/2: 12 blocks, width 384, 6 heads; ``options`` go to :class:`VDT`."""
    return VDT(**{"dim": 384, "depth": 12, "heads": 6, **options})  # type: ignore[arg-type]


def vdt_l_2(**options: int | float | bool) -> VDT:
    """VDT-L/2: 28 blocks, width 1152, 16 heads; ``options`` go to :class:`VDT`."""
    return VDT(**options)  # type: ignore[arg-type]
