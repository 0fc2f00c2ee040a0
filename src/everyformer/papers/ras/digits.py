"""What the quality study draws with and judges by: a DiT of digits with 256 tokens, and a classifier of digits."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Scale
from everyformer.lab import data, train
from everyformer.lab.pretrained import load_or_train
from everyformer.parts import diffusion, dit
from everyformer.parts.diffusion import flow_matching_loss
from everyformer.parts.dit import DiT

SIDE, PATCH = 32, 2  # pixels


@dataclasses.dataclass(frozen=True)
class Size:
    """The digits, the DiT, and the steps that it and the judge are trained for."""

    images: str
    dim: int
    depth: int
    heads: int
    batch: int
    steps: int
    judge: int


SIZES: dict[Scale, Size] = {
    "smoke": Size("mnist_500", dim=16, depth=1, heads=1, batch=8, steps=20, judge=40),
    "cpu": Size("mnist_test", dim=64, depth=3, heads=2, batch=16, steps=3600, judge=400),
    "paper": Size("mnist_train", dim=384, depth=12, heads=6, batch=256, steps=50_000, judge=5_000),
}

Labelled = tuple[Float[Tensor, "samples 1 32 32"], Int[Tensor, " samples"]]


def digits(scale: Scale) -> tuple[Labelled, Labelled]:
    """Digits in [-1, 1] with their classes: four fifths to train on, the rest held out."""
    images, labels = data.digits(SIZES[scale].images)
    padded = F.pad(images.float().unsqueeze(1) / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    cut = len(padded) * 4 // 5
    return (padded[:cut], labels[:cut]), (padded[cut:], labels[cut:])


class Judge(nn.Module):
    """A small convolutional classifier of digits: logits, and the 32 features that distances are measured in."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(512, 32), nn.GELU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def features(self, images: Float[Tensor, "batch 1 32 32"]) -> Float[Tensor, "batch 32"]:
        """What the classifier sees before it decides."""
        return self.body(images)  # type: ignore[no-any-return]

    def forward(self, images: Float[Tensor, "batch 1 32 32"]) -> Float[Tensor, "batch 10"]:
        return self.head(self.features(images))  # type: ignore[no-any-return]


def judge(scale: Scale, device: str) -> Judge:
    """The trained judge, from the cache where it is there."""
    torch.manual_seed(0)
    model = Judge()

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    _trained_once(model, loss, scale, device, steps=SIZES[scale].judge, batch=64, label="a judge of digits")
    return model


def painter(scale: Scale, device: str) -> DiT:
    """The trained class-conditional DiT, a rectified flow, from the cache where it is there."""
    size = SIZES[scale]
    torch.manual_seed(0)
    model = DiT(image_size=SIDE, patch=PATCH, channels=1, dim=size.dim, depth=size.depth, heads=size.heads, classes=10)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        images, labels, noise, sigmas = batch
        return flow_matching_loss(model, images, labels, noise=noise, sigmas=sigmas)

    _trained_once(model, loss, scale, device, steps=size.steps, batch=size.batch, label="a DiT of digits")
    return model


def _trained_once(
    model: nn.Module,
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
    scale: Scale,
    device: str,
    *,
    steps: int,
    batch: int,
    label: str,
) -> None:
    """Train ``model``, or read its weights from the cache."""
    (images, labels), _ = digits(scale)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randint(len(images), (batch,), generator=generator)
        noise = torch.randn(batch, *images.shape[1:], generator=generator)
        return images[index], labels[index], noise, torch.rand(batch, generator=generator)

    def fit(folder: Path) -> None:
        train.fit_drawn(
            model, loss, draw, steps=steps, rate=2e-3, folder=folder, seed=0, device=device, label=label
        )  # fmt: skip

    recipe = dataclasses.asdict(SIZES[scale])
    load_or_train(
        model, fit, recipe=recipe, samples=(images, labels), code=(diffusion, dit, train, sys.modules[__name__])
    )
    model.to(device).eval().requires_grad_(False)
