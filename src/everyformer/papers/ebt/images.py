"""The bidirectional Energy-Based Transformer: an image to one energy, and denoising by descent (arXiv 2507.02092).

A diffusion transformer's blocks with a scalar for each patch in place of the noise, and no timestep: what it knows of the
noise level it has to see. The candidate is the image itself, which starts as the noisy one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from everyformer.papers.ebt.descent import S1, SMALLEST_ALPHA, Recipe, Walk, descend, step_size, thinking_schedule
from everyformer.parts.dit import Block, grid_positions, modulate


def twice_differentiable_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention by torch's plain path: the fused ones cannot be differentiated twice."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value)


class ImageEBT(nn.Module):
    """Energy-Based Transformer for square images, with the blocks of a DiT (adaLN-Zero) under one learnt condition.

    Args:
        image_size, patch, channels: of the images, in pixels.
        dim, depth, heads, mlp_ratio: sizes.
        steps: of a walk in training.
        alpha: first step size; large, because the energy is a mean over patches.
        learn_alpha: whether it is trained; see :func:`parameter_groups` for its own rate.
        recipe: how candidates walk in training.

    Raises:
        ValueError: sizes that do not divide one another, ``alpha`` or ``steps`` not above 0.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        channels: int = 3,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        steps: int = 1,
        alpha: float = 3000.0,
        learn_alpha: bool = True,
        recipe: Recipe = S1,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size must be divisible by patch, got image_size={image_size} and patch={patch}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.image_size, self.patch, self.channels = image_size, patch, channels
        self.steps, self.recipe = steps, recipe
        self.alpha = step_size(alpha, learn_alpha)
        self.condition = nn.Embedding(1, dim)
        self.embed = nn.Linear(channels * patch**2, dim)
        # A buffer that is kept: the authors order sines and cosines in another way.
        self.register_buffer("positions", grid_positions(image_size // patch, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads=heads, mlp_ratio=mlp_ratio, attend=twice_differentiable_attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.energy_head = nn.Linear(dim, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        for silent in (*(block.adaptive[1] for block in blocks), self.adaptive[1], self.energy_head):
            nn.init.zeros_(silent.weight)  # type: ignore[arg-type]

    def energy(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch"]:
        """The energy of each image: the mean of its patches' scalars."""
        expected = (self.channels, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images must be (batch, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        x = self.embed(patches) + self.positions
        condition = self.condition.weight.expand(len(images), -1)
        for block in self.blocks:
            x = block(x, condition)
        x = modulate(self.norm(x), *self.adaptive(condition).chunk(2, -1))
        return self.energy_head(x).mean((1, 2))  # type: ignore[no-any-return]

    def forward(self, noisy: Float[Tensor, "batch channels height width"]) -> Walk:
        """The walk from noisy images by the recipe; ``states`` are the images after each step."""
        alpha = self.recipe.step_sizes(self.alpha, (len(noisy), 1, 1, 1), random=self.training)
        return descend(
            lambda images, _: self.energy(images),
            noisy,
            self.recipe.schedule(self.steps, random=self.training),
            alpha=alpha,
            detach=self.recipe.detach,
            last_only=self.recipe.last_only,
            noise=self.recipe.noise,
        )

    def loss(
        self, noisy: Float[Tensor, "batch channels height width"], clean: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, ""]:
        """Smooth L1 distance to the clean images: the mean over steps, or the last step's where the recipe says so."""
        return self.score(self(noisy), clean)

    def score(self, walk: Walk, clean: Float[Tensor, "batch channels height width"]) -> Float[Tensor, ""]:
        """The loss of a walk: for training loops that call the model themselves, such as a wrapped one's."""
        scored = walk.states[-1:] if self.recipe.last_only else walk.states
        return torch.stack([F.smooth_l1_loss(state, clean) for state in scored]).mean()

    @torch.no_grad()
    def think(self, noisy: Float[Tensor, "batch channels height width"], *, steps: int | None = None) -> Walk:
        """Denoise by ``steps`` steps (as many as in training by default); ``states`` are the images after each.

        Raises:
            ValueError: ``steps`` below 1.
        """
        return descend(
            lambda images, _: self.energy(images),
            noisy,
            thinking_schedule(self.steps, steps),
            alpha=self.alpha.clamp(min=SMALLEST_ALPHA),
            learn=False,
        )
