"""PredFormer: the next frames of a video by gated transformer blocks alone (arXiv 2410.04733, section 3).

Every frame is cut into patches, and stages of gated blocks attend over time (T), over the patches of a frame (S) or over
all tokens together (J). A layer is a string of stages, and the model repeats it: "TSST" six times is the paper's best on
Moving MNIST, "TS" once with deep stages is its factorised model, "J" the full one. Nothing else sets the nine
arrangements of the paper apart.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Arrangement = Literal["full", "fac_st", "fac_ts", "ts", "st", "tst", "sts", "tsst", "stts"]
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)
AXES = "TS"


def arranged(name: Arrangement, blocks: int) -> dict[str, str | int]:
    """``spec``, ``layers`` and ``depth`` of one of the paper's nine arrangements with so many blocks (table 1).

    Raises:
        ValueError: an unknown name, or a number of blocks that does not fill whole layers.
    """
    if name not in ARRANGEMENTS:
        raise ValueError(f"name must be one of {', '.join(ARRANGEMENTS)}, got {name!r}")
    spec = "J" if name == "full" else name.removeprefix("fac_").upper()
    if blocks < 1 or blocks % len(spec):
        raise ValueError(f"blocks must be a multiple of the {len(spec)} stages of a layer {spec}, got {blocks}")
    each = blocks // len(spec)
    deep = name == "full" or name.startswith("fac_")
    return {"spec": spec, "layers": 1 if deep else each, "depth": each if deep else 1}


def positions(tokens: int, dim: int) -> Float[Tensor, "tokens dim"]:
    """Sines (even places) and cosines (odd places) of a token's number among all tokens of a video."""
    place = torch.arange(dim)
    rates = 10_000.0 ** (-2.0 * (place // 2).double() / dim)
    angles = (torch.arange(tokens).double()[:, None] * rates).float()
    return torch.where(place % 2 == 0, angles.sin(), angles.cos())


class Attention(nn.Module):
    """Self-attention; heads that together are as wide as one token and alone have no projection after them."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        alone = heads == 1 and head_dim == dim
        self.out = nn.Identity() if alone else nn.Sequential(nn.Linear(heads * head_dim, dim), nn.Dropout(dropout))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h e) -> three b h n e", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(rearrange(mixed, "b h n e -> b n (h e)"))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """Gated feed-forward layer ``out(silu(gate) * value)`` with biases; gate and value are one product."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate_value = nn.Linear(dim, 2 * hidden)
        self.out = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        inner = F.dropout(F.silu(gate) * value, self.dropout, self.training)
        return F.dropout(self.out(inner), self.dropout, self.training)


class MLP(nn.Sequential):
    """Plain feed-forward layer, for the paper's ablation of the gate."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )


class GatedTransformerBlock(nn.Module):
    """Attention and SwiGLU, each after a LayerNorm and beside a skip (section 3.2).

    In training each sequence loses each branch with probability ``drop_path``. ``gated=False`` puts an MLP in the place
    of the SwiGLU.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        hidden: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim, attention_dropout)
        self.mlp = (SwiGLU if gated else MLP)(dim, hidden, dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        x = x + self._kept(self.attention(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * (branch.new_empty(len(branch), 1, 1).bernoulli_(keep) / keep)


class Stage(nn.Module):
    """Blocks that attend along one axis, and a LayerNorm that ends them.

    The norm lies on the stream itself, so a stage cannot pass its input on unchanged.
    """

    def __init__(self, axis: str, depth: int, dim: int, **options: int | float | bool) -> None:
        super().__init__()
        self.axis = axis
        self.blocks = nn.ModuleList(GatedTransformerBlock(dim, **options) for _ in range(depth))  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]


class PredFormer(nn.Module):
    """Video in, as many frames that follow out: (batch, frames, channels, height, width) to the same shape.

    Args:
        in_shape: (frames, channels, height, width) of a video; the model is bound to them by its positions.
        spec: the stages of a layer in order, of letters T (attention over time), S (over the patches of a frame), or J
            alone (over all tokens).
        layers: how often the layer is repeated, with weights of its own.
        depth: blocks in a stage.
        patch_size: side of a patch in pixels.
        dim, heads, head_dim: width of a token, attention heads and the width of each.
        mlp_scale: hidden width of the feed-forward layers / ``dim``.
        dropout, attention_dropout: of the feed-forward layers, and of what attention gives.
        drop_path: share of sequences whose branch is left out in training, the same in all blocks.
        gated: SwiGLU, or a plain MLP (section 4.3).
        reorder: before the head, put tokens that lie place by place back to frame by frame. The authors' Fac-S-T does
            not (a model trained by their code has learned to live with it); their other eight arrangements do.

    Raises:
        ValueError: sizes that are not positive or do not divide one another, a spec of other letters, or a rate outside
            [0, 1); from ``forward``, a video of another shape.
        TypeError: from ``forward``, a video that is not floating.
    """

    positions: Tensor

    def __init__(
        self,
        in_shape: tuple[int, int, int, int] = (10, 1, 64, 64),
        *,
        spec: str = "TSST",
        layers: int = 6,
        depth: int = 1,
        patch_size: int = 8,
        dim: int = 256,
        heads: int = 8,
        head_dim: int = 32,
        mlp_scale: int = 4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        gated: bool = True,
        reorder: bool = True,
    ) -> None:
        super().__init__()
        if len(in_shape) != 4 or min(in_shape) < 1:
            raise ValueError(f"in_shape must be (frames, channels, height, width), all at least 1, got {in_shape}")
        if not spec or (spec != "J" and set(spec) - set(AXES)):
            raise ValueError(f"spec must be a string of the letters T and S, or J alone, got {spec!r}")
        sizes = {"layers": layers, "depth": depth, "patch_size": patch_size, "dim": dim, "heads": heads}
        for name, size in {**sizes, "head_dim": head_dim, "mlp_scale": mlp_scale}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        for name, rate in {"dropout": dropout, "attention_dropout": attention_dropout, "drop_path": drop_path}.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate}")
        frames, channels, height, width = in_shape
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"height and width must be divisible by patch_size, got {height} x {width} and {patch_size}"
            )
        self.in_shape, self.spec, self.patch_size, self.reorder = tuple(in_shape), spec, patch_size, reorder
        options = {
            "heads": heads, "head_dim": head_dim, "hidden": mlp_scale * dim, "dropout": dropout,
            "attention_dropout": attention_dropout, "drop_path": drop_path, "gated": gated,
        }  # fmt: skip
        self.embed = nn.Linear(channels * patch_size**2, dim)
        places = (height // patch_size) * (width // patch_size)
        table = positions(frames * places, dim).view(frames, places, dim)
        self.register_buffer("positions", table, persistent=False)
        self.stages = nn.ModuleList(Stage(axis, depth, dim, **options) for axis in spec * layers)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, channels * patch_size**2)
        for module in self.stages.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, video: Float[Tensor, "batch frames channels height width"]
    ) -> Float[Tensor, "batch frames channels height width"]:
        if tuple(video.shape[1:]) != self.in_shape:
            raise ValueError(f"video must be (batch, {', '.join(map(str, self.in_shape))}), got {tuple(video.shape)}")
        if not video.is_floating_point():
            raise TypeError(f"video must be of a floating type, got {video.dtype}")
        p, rows, frames = self.patch_size, self.in_shape[2] // self.patch_size, self.in_shape[0]
        x = self.embed(rearrange(video, "b t c (h p) (w q) -> b t (h w) (p q c)", p=p, q=p)) + self.positions
        places, by_place = x.shape[2], False
        for stage in self.stages:
            if stage.axis == "J":
                x = stage(x.flatten(1, 2)).unflatten(1, (frames, places))
                continue
            if (stage.axis == "T") != by_place:  # neighbours that attend along the same axis need no transpose
                x, by_place = x.transpose(1, 2).contiguous(), not by_place
            x = stage(x.flatten(0, 1)).view_as(x)
        if by_place:
            x = x.transpose(1, 2) if self.reorder else x.reshape(-1, frames, places, x.shape[-1])
        x = self.head(self.norm(x))
        # Channels come last in the vector of a patch on its way in, and first on its way out.
        return rearrange(x, "b t (h w) (c p q) -> b t c (h p) (w q)", h=rows, p=p, q=p)

    @torch.no_grad()
    def predict(
        self, video: Float[Tensor, "batch frames channels height width"], steps: int
    ) -> Float[Tensor, "batch steps channels height width"]:
        """The ``steps`` frames that follow: predictions are fed back until there are enough, and the rest is cut.

        Raises ``ValueError`` if ``steps`` is below one.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        found: list[Tensor] = []
        for _ in range(0, steps, self.in_shape[0]):
            video = self(video)
            found.append(video)
        return torch.cat(found, dim=1)[:, :steps]


def _sized(name: Arrangement, blocks: int, **options: object) -> PredFormer:
    return PredFormer(**{**arranged(name, blocks), **options})  # type: ignore[arg-type]


def predformer_moving_mnist(arrangement: Arrangement = "tsst", **options: object) -> PredFormer:
    """The published size for Moving MNIST, ten frames of 64 x 64 to the next ten; ``options`` go to PredFormer."""
    return _sized(arrangement, 24, **options)


def predformer_taxibj(arrangement: Arrangement = "st", **options: object) -> PredFormer:
    """The published size for TaxiBJ, four maps of 32 x 32 to the next four; ``options`` go to PredFormer."""
    own = {"in_shape": (4, 2, 32, 32), "patch_size": 4, "dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1}
    return _sized(arrangement, _of_two_layers(arrangement), **{**own, **options})


def predformer_weatherbench(arrangement: Arrangement = "fac_ts", **options: object) -> PredFormer:
    """The published size for WeatherBench's temperature, twelve maps of 32 x 64 to twelve; ``options`` go to PredFormer."""
    own = {"in_shape": (12, 1, 32, 64), "patch_size": 4, "mlp_scale": 2, "dropout": 0.1, "attention_dropout": 0.1,
           "drop_path": 0.25}  # fmt: skip
    return _sized(arrangement, _of_two_layers(arrangement), **{**own, **options})


def _of_two_layers(arrangement: Arrangement) -> int:
    """Eight blocks, but six in the triplets: of their layers, too, the paper's tables have two."""
    return 6 if arrangement in ("tst", "sts") else 8
