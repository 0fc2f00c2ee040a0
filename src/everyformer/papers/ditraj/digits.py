"""A small video diffusion transformer that draws digits in motion from captions: what the claims steer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Scale
from everyformer.lab import moving_digits, train
from everyformer.lab.pretrained import load_or_train
from everyformer.parts import diffusion, dit, video_dit
from everyformer.parts.diffusion import flow_matching_loss
from everyformer.parts.video_dit import VideoDiT

# A caption is two words: "digit" and which, "frame" and "empty", or "anything" twice for no caption at all.
DIGIT, FRAME, EMPTY, ANYTHING = 10, 11, 12, 13
BACKGROUND, NO_CAPTION = (FRAME, EMPTY), (ANYTHING, ANYTHING)
EMPTY_SHARE, WITHHELD_SHARE = 0.1, 0.1
# What makes a few minutes of training enough: the model sees videos at half their size, as others see latents; digits
# move by whole patches; and there are few of each class.
HALF = moving_digits.SIDE // 2
PATCH = 4
SPEED = (2.0, 8.0)  # pixels of the whole video a frame
EACH = 4
SHIFT = 3.0  # how far noise levels are shifted towards noise, in training and in sampling; Wan's at 480p
WARM = 50  # first steps of training in which the rate rises


@dataclasses.dataclass(frozen=True)
class Size:
    """Frames of a video, the model, and its training."""

    frames: int
    dim: int
    depth: int
    heads: int
    batch: int
    steps: int
    rate: float


SIZES: dict[Scale, Size] = {
    "smoke": Size(frames=4, dim=24, depth=1, heads=1, batch=4, steps=10, rate=2e-3),
    "cpu": Size(frames=4, dim=128, depth=4, heads=4, batch=32, steps=2400, rate=2e-3),
    "paper": Size(frames=16, dim=384, depth=12, heads=6, batch=64, steps=100_000, rate=3e-4),
}


class CaptionedVideoDiT(nn.Module):
    """A :class:`VideoDiT` with embedded captions of two words: ``(video, timesteps, captions (batch, 2))``."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words = nn.Embedding(ANYTHING + 1, 32)
        # Twice the tokens of a side, so that neighbours differ by an angle that can be told apart.
        self.video = VideoDiT(
            patch=PATCH,
            channels=1,
            text_dim=32,
            dim=size.dim,
            depth=size.depth,
            heads=size.heads,
            longest=2.0 * HALF / PATCH,
        )

    def forward(
        self,
        video: Float[Tensor, "batch frames 1 16 16"],
        timesteps: Float[Tensor, " batch"],
        captions: Int[Tensor, "batch 2"],
    ) -> Float[Tensor, "batch frames 1 16 16"]:
        return self.video(video, timesteps, self.words(captions))  # type: ignore[no-any-return]

    def prompt(self, caption: Sequence[int] | Int[Tensor, "batch 2"]) -> Float[Tensor, "batch 2 32"]:
        """Embedded captions; a single one is a batch of one."""
        tokens = torch.as_tensor(caption, device=self.words.weight.device)
        return self.words(tokens if tokens.dim() == 2 else tokens[None]).detach()  # type: ignore[no-any-return]


def captions(labels: Int[Tensor, " batch"]) -> Int[Tensor, "batch 2"]:
    """The captions of videos of one digit each."""
    return torch.stack([torch.full_like(labels, DIGIT), labels], dim=1)


def digits(scale: Scale) -> moving_digits.Digits:
    """The digits that videos are made of: the first few of every class."""
    source = moving_digits.digits(scale, "train")
    chosen = torch.cat([(source.labels == label).nonzero()[:EACH, 0] for label in range(10)])
    return moving_digits.Digits(source.images[chosen], source.labels[chosen])


def paths(count: int, frames: int, generator: torch.Generator) -> Float[Tensor, "count frames 2"]:
    """Left and top edges (pixels of the whole video) of digits in motion, by whole patches."""
    patch = 2 * PATCH
    return (moving_digits.paths(count, frames, generator, speed=SPEED) / patch).round() * patch


def enlarged(video: Float[Tensor, "*batch 1 16 16"]) -> Float[Tensor, "*batch 1 32 32"]:
    """Videos at their whole size again."""
    large = F.interpolate(video.flatten(0, -4), scale_factor=2, mode="bilinear")
    return large.view(*video.shape[:-2], moving_digits.SIDE, moving_digits.SIDE)


def rendered(
    images: Float[Tensor, "batch 16 16"], corners: Float[Tensor, "batch frames 2"]
) -> Float[Tensor, "batch frames 1 16 16"]:
    """Videos of digits with their left and top edges at ``corners``, at half their size."""
    frames = moving_digits.render(images[:, None], corners[:, :, None]).frames
    return F.avg_pool2d(frames.flatten(0, 1), 2).unflatten(0, frames.shape[:2])


def drawn(source: moving_digits.Digits, size: Size, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Videos, captions, noise and noise levels; some videos are empty frames, some captions are withheld."""
    chosen = torch.randint(len(source.images), (size.batch,), generator=generator)
    corners = paths(size.batch, size.frames, generator)
    video = rendered(source.images[chosen], corners)
    words = captions(source.labels[chosen])
    empty, withheld = torch.rand(2, size.batch, generator=generator) < torch.tensor([[EMPTY_SHARE], [WITHHELD_SHARE]])
    words[empty], video[empty] = torch.tensor(BACKGROUND), -1.0
    words[withheld] = torch.tensor(NO_CAPTION)
    levels = torch.rand(size.batch, generator=generator)
    levels = SHIFT * levels / (1 + (SHIFT - 1) * levels)
    return video, words, torch.randn(video.shape, generator=generator), levels


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """The denoising loss of a batch."""
    video, words, noise, sigmas = batch
    return flow_matching_loss(model, video, words, noise=noise, sigmas=sigmas)


def trained(scale: Scale, *, device: str = "cpu") -> CaptionedVideoDiT:
    """The model of a scale, from the cache where it is there; no seed of a claim enters into it."""
    size, source = SIZES[scale], digits(scale)
    torch.manual_seed(0)
    model = CaptionedVideoDiT(size)

    def fit(folder: Path) -> None:
        train.fit_drawn(
            model, loss, lambda generator: drawn(source, size, generator), steps=size.steps, rate=size.rate, warm=WARM,
            folder=folder, seed=0, device=device, label="a video model of digits in motion",
        )  # fmt: skip

    load_or_train(
        model, fit, recipe=dataclasses.asdict(size), samples=(source.images, source.labels),
        code=(diffusion, dit, moving_digits, video_dit, sys.modules[__name__]),
    )  # fmt: skip
    return model.to(device).eval().requires_grad_(False)
