"""DUSt3R: two images to two pointmaps in the frame of the first (arXiv 2312.14132, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.feedforward_3d.blocks import (
    Block,
    PairBlock,
    Patches,
    Table,
    grid_positions,
    initialise,
    patch_grid,
    rotary_table,
    rotary_width,
    run,
)
from everyformer.papers.feedforward_3d.heads import DPT, LinearHead, Pointmap, pointmap

Grid = tuple[int, int]


class PairModel(nn.Module):
    """Shared encoder, two decoders with cross-attention, a head per view; the defaults are the published sizes.

    Takes two batches of images (batch, 3, height, width) in [0, 1] (the two may differ in size), gives two pointmaps in
    the frame of view 1. ``head`` is "linear" (a token gives its patch) or "dpt" (four levels, ``features`` wide, with
    ``layer_dims`` channels). ``checkpointing`` trades time for memory in training.

    Raises ``ValueError`` for sizes that do not divide one another, an unknown head, images that do not fit.
    """

    def __init__(
        self,
        *,
        patch: int = 16,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        decoder_dim: int = 768,
        decoder_depth: int = 12,
        decoder_heads: int = 12,
        head: Literal["linear", "dpt"] = "linear",
        features: int = 256,
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        last: int = 128,
        rope_base: float = 100.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if head not in ("linear", "dpt"):
            raise ValueError(f'head must be "linear" or "dpt", got {head!r}')
        if head == "dpt" and decoder_depth < 4:
            raise ValueError(f"decoder_depth must be at least 4 for head='dpt', got {decoder_depth}")
        self.patch, self.rope_base, self.checkpointing = patch, rope_base, checkpointing
        self.encoder_head, self.decoder_head = rotary_width(dim, heads), rotary_width(decoder_dim, decoder_heads)
        self.patches = Patches(dim, patch)
        self.encoder = nn.ModuleList(Block(dim, heads=heads) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.embed = nn.Linear(dim, decoder_dim)
        # Of CroCo's pre-training by masking: kept so that checkpoints go round, without a use here.
        self.register_buffer("mask_token", torch.zeros(1, 1, decoder_dim))
        self.decoder1 = nn.ModuleList(PairBlock(decoder_dim, heads=decoder_heads) for _ in range(decoder_depth))
        self.decoder2 = nn.ModuleList(PairBlock(decoder_dim, heads=decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        # Levels of the decoder that the head reads; 0 is the encoder's output.
        self.levels = (
            (decoder_depth,) if head == "linear" else (0, decoder_depth // 2, decoder_depth * 3 // 4, decoder_depth)
        )

        def build() -> nn.Module:
            if head == "linear":
                return LinearHead(decoder_dim, patch=patch)
            dims = (dim, decoder_dim, decoder_dim, decoder_dim)
            return DPT(dims, patch=patch, features=features, layer_dims=layer_dims, last=last)

        self.head1, self.head2 = build(), build()
        initialise(self)
        self.decoder2.load_state_dict(self.decoder1.state_dict())  # they part ways in training

    def forward(
        self, image1: Float[Tensor, "batch 3 height width"], image2: Float[Tensor, "batch 3 height2 width2"]
    ) -> tuple[Pointmap, Pointmap]:
        if image1.ndim != 4 or image1.shape[:2] != image2.shape[:2]:
            raise ValueError(
                f"image1 and image2 must be (batch, 3, height, width) with as many images in each, got "
                f"{tuple(image1.shape)} and {tuple(image2.shape)}"
            )
        grid1, grid2 = self.grid(image1), self.grid(image2)
        if grid1 == grid2:
            tokens1, tokens2 = self.encode(torch.cat([image1, image2])).chunk(2)
        else:
            tokens1, tokens2 = self.encode(image1), self.encode(image2)
        return self.decode(tokens1, tokens2, grid1, grid2)

    def grid(self, images: Float[Tensor, "batch 3 height width"]) -> Grid:
        """Rows and columns of patches of these images. Raises ``ValueError`` for images that do not fit the model."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (batch, 3, height, width), got {tuple(images.shape)}")
        return patch_grid(images.shape[-2], images.shape[-1], self.patch)

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of each image by itself: encode an image once, then decode it in all its pairs."""
        table = self._table(self.grid(images), images, self.encoder_head)
        x = self.patches(2 * images - 1)
        for block in self.encoder:
            x = run(block, x, table, checkpointing=self.checkpointing)
        return self.encoder_norm(x)

    def decode(
        self,
        tokens1: Float[Tensor, "batch tokens dim"],
        tokens2: Float[Tensor, "batch tokens2 dim"],
        grid1: Grid,
        grid2: Grid,
    ) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of pairs of encoded images, both in the frame of the first; ``grid1`` and ``grid2`` as of ``grid``."""
        table1 = self._table(grid1, tokens1, self.decoder_head)
        table2 = self._table(grid2, tokens2, self.decoder_head) if grid2 != grid1 else table1
        kept = [(tokens1, tokens2)] if 0 in self.levels else []
        x1, x2 = self.embed(tokens1), self.embed(tokens2)
        for number, (block1, block2) in enumerate(zip(self.decoder1, self.decoder2, strict=True), start=1):
            # In lock step: both look at the other side as it was before this level.
            x1, x2 = (
                run(block1, x1, x2, table1, table2, checkpointing=self.checkpointing),
                run(block2, x2, x1, table2, table1, checkpointing=self.checkpointing),
            )
            if number in self.levels:
                last = number == len(self.decoder1)
                kept.append((self.decoder_norm(x1), self.decoder_norm(x2)) if last else (x1, x2))
        levels1, levels2 = zip(*kept, strict=True)
        return _dense(self.head1, levels1, grid1), _dense(self.head2, levels2, grid2)

    def _table(self, grid: Grid, like: Tensor, head_dim: int) -> Table:
        return rotary_table(grid_positions(*grid).to(like.device), head_dim, base=self.rope_base)


def _dense(head: nn.Module, levels: Sequence[Tensor], grid: Grid) -> Pointmap:
    """The head in its own precision under autocast: exponentials of half precision are too coarse for points."""
    dtype = next(head.parameters()).dtype
    with torch.autocast(levels[0].device.type, enabled=False):
        return pointmap(head([level.to(dtype) for level in levels], grid))
