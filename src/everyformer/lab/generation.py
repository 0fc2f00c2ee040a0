"""Generating digits: a small few-step diffusion model that is trained once, and judges of digits."""

from __future__ import annotations

import copy
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
from everyformer.parts.diffusion import consistency_loss, velocity_loss
from everyformer.parts.dit import DiT

SIDE = 16  # pixels
ORIGIN = 50  # timesteps that a consistency model is distilled on: ``original_inference_steps`` of LCMScheduler


@dataclasses.dataclass(frozen=True)
class Digits:
    """Digits (samples, 1, 16, 16) in [-1, 1] and their classes (samples,), to train on and held out."""

    train: tuple[Float[Tensor, "train 1 16 16"], Int[Tensor, " train"]]
    test: tuple[Float[Tensor, "test 1 16 16"], Int[Tensor, " test"]]


@dataclasses.dataclass(frozen=True)
class Size:
    """The digits, the DiT, and the steps of the teacher, of the student and of a judge."""

    images: str
    dim: int
    depth: int
    heads: int
    batch: int
    teacher: int
    student: int
    judge: int


SIZES: dict[Scale, Size] = {
    "smoke": Size("mnist_500", dim=32, depth=1, heads=1, batch=16, teacher=20, student=10, judge=60),
    "cpu": Size("mnist_test", dim=96, depth=4, heads=3, batch=64, teacher=2500, student=500, judge=400),
    "paper": Size("mnist_train", dim=384, depth=12, heads=6, batch=256, teacher=50_000, student=20_000, judge=5_000),
}


def digits(scale: Scale) -> Digits:
    """Digits of half their size; the last fifth is held out."""
    images, labels = data.digits(SIZES[scale].images)
    padded = F.pad(images.float().unsqueeze(1) / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    small = F.avg_pool2d(padded, 2)
    cut = len(small) * 4 // 5
    return Digits((small[:cut], labels[:cut]), (small[cut:], labels[cut:]))


class Judge(nn.Module):
    """A small convolutional classifier of digits: logits, and the features that distances are measured in."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(512, 48), nn.GELU(),
        )  # fmt: skip
        self.head = nn.Linear(48, 10)

    def features(self, images: Float[Tensor, "batch 1 16 16"]) -> Float[Tensor, "batch 48"]:
        """What the classifier sees before it decides."""
        return self.body(images)  # type: ignore[no-any-return]

    def forward(self, images: Float[Tensor, "batch 1 16 16"]) -> Float[Tensor, "batch 10"]:
        return self.head(self.features(images))  # type: ignore[no-any-return]


def judge(scale: Scale, *, seed: int, device: str = "cpu") -> Judge:
    """A trained :class:`Judge`; different seeds give judges of different weights. From the cache where it is there."""
    size, shown = SIZES[scale], digits(scale).train
    torch.manual_seed(seed)
    model = Judge()

    def fit(folder: Path) -> None:
        train.fit_drawn(
            model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), lambda generator: _draw(shown, 64, generator),
            steps=size.judge, rate=2e-3, folder=folder, seed=seed, device=device, label="a judge of digits",
        )  # fmt: skip

    return _trained_once(model, fit, scale, device, seed=seed)  # type: ignore[return-value]


def few_step_digits(scale: Scale, *, device: str = "cpu") -> DiT:
    """A class-conditional DiT that draws digits in a few steps of diffusers' ``LCMScheduler`` or ``TCDScheduler``.

    A teacher is trained to predict velocities, then a student is distilled to see the end of the teacher's path from
    every point of it. The schedulers need ``prediction_type="v_prediction"``. From the cache where it is there.
    """
    size, shown = SIZES[scale], digits(scale).train
    torch.manual_seed(0)
    student = DiT(image_size=SIDE, patch=4, channels=1, dim=size.dim, depth=size.depth, heads=size.heads, classes=10)
    table = alphas_cumprod()
    apart = len(table) // ORIGIN

    def draw_teacher(generator: torch.Generator) -> tuple[Tensor, ...]:
        images, labels = _draw(shown, size.batch, generator)
        noise = torch.randn(images.shape, generator=generator)
        return images, labels, noise, torch.randint(len(table), (size.batch,), generator=generator)

    def draw_student(generator: torch.Generator) -> tuple[Tensor, ...]:
        images, labels, noise, _ = draw_teacher(generator)
        return images, labels, noise, torch.randint(ORIGIN, (size.batch,), generator=generator) * apart + apart - 1

    def teach(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        images, labels, noise, timesteps = batch
        return velocity_loss(model, images, labels, noise=noise, timesteps=timesteps, alphas_cumprod=table)

    def fit(folder: Path) -> None:
        train.fit_drawn(
            student, teach, draw_teacher, steps=size.teacher, rate=2e-3, folder=folder / "teacher", seed=0,
            device=device, label="a teacher of digits",
        )  # fmt: skip
        teacher = copy.deepcopy(student).requires_grad_(False)

        def distil(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
            images, labels, noise, timesteps = batch
            return consistency_loss(model, teacher, images, labels, noise=noise, timesteps=timesteps,
                                    alphas_cumprod=table)  # fmt: skip

        train.fit_drawn(
            student, distil, draw_student, steps=size.student, rate=1e-3, folder=folder / "student", seed=0,
            device=device, label="a student of few steps",
        )  # fmt: skip

    return _trained_once(student, fit, scale, device)  # type: ignore[return-value]


def alphas_cumprod() -> Float[Tensor, "1000"]:
    """The noise schedule of diffusers' ``LCMScheduler`` and ``TCDScheduler`` as they come."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


@torch.no_grad()
def draw(
    model: Callable[..., Tensor],
    labels: Int[Tensor, " batch"],
    scheduler: object,
    steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "batch 1 16 16"]:
    """Digits of the classes ``labels`` in ``steps`` steps of a scheduler of diffusers, clamped to [-1, 1]."""
    scheduler.set_timesteps(steps)  # type: ignore[attr-defined]
    images = torch.randn(len(labels), 1, SIDE, SIDE, generator=generator).to(labels.device)
    for timestep in scheduler.timesteps:  # type: ignore[attr-defined]
        output = model(images, timestep.to(images).expand(len(labels)), labels)
        images = scheduler.step(output, timestep, images, generator=generator).prev_sample  # type: ignore[attr-defined]
    return images.clamp(-1, 1)


def _draw(shown: tuple[Tensor, Tensor], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    index = torch.randint(len(shown[0]), (batch,), generator=generator)
    return shown[0][index], shown[1][index]


def _trained_once(
    model: nn.Module, fit: Callable[[Path], None], scale: Scale, device: str, **settings: int
) -> nn.Module:
    """``model`` trained by ``fit``, or read from the cache."""
    load_or_train(
        model, fit, recipe={**dataclasses.asdict(SIZES[scale]), **settings}, samples=digits(scale).train,
        code=(diffusion, dit, train, sys.modules[__name__]),
    )  # fmt: skip
    return model.to(device).eval().requires_grad_(False)
