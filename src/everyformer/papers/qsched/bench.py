"""What the coefficients cost per step of each scheduler, and calibration trials per second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.papers.qsched.calibration import calibrate
from everyformer.papers.qsched.method import SUPPORTED, Coefficients, QSchedScheduler

STEPS = 4


def sampling(scheduler: Any, latents: Tensor) -> Callable[[], Tensor]:
    """All steps of a scheduler with a model that takes no time."""

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS, device=latents.device)
        sample, generator = latents, torch.Generator().manual_seed(0)
        for timestep in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(latents, timestep, sample, generator=generator).prev_sample
        return sample

    return run


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Schedulers on latents of Stable Diffusion's size, and a calibration beside as many plain samplings."""
    latents = torch.randn(1 if quick else 4, 4, 64, 64, device=device)
    lines = Coefficients.line(STEPS, model=0.95, sample=1.02)
    for base in SUPPORTED:
        wrapped = QSchedScheduler.wrap(base(), lines)
        yield Case(
            f"{STEPS} steps of {base.__name__}, {len(latents)} latents of 4 x 64 x 64",
            sampling(wrapped, latents),
            {"the original": sampling(base(), latents)},
            0.9,
            "target: at most a tenth slower, with a model that takes no time",
        )

    trials, scheduler = (5 if quick else 50), next(iter(SUPPORTED))()
    model = nn.Conv2d(4, 4, 3, padding=1, device=device).requires_grad_(False)

    def generate(prompts: Any, scheduler: Any, generator: torch.Generator) -> Tensor:
        scheduler.set_timesteps(STEPS, device=device)
        sample = latents
        for timestep in scheduler.timesteps:
            sample = scheduler.step(model(sample), timestep, sample, generator=generator).prev_sample
        return sample

    def score(images: Tensor, prompts: Any) -> float:
        return -float(images.square().mean())

    def search() -> None:
        calibrate(generate, ["a"], score, steps=STEPS, budget=trials, scheduler=scheduler, progress=False)

    def plain() -> None:
        for _ in range(trials):
            score(generate(["a"], QSchedScheduler.wrap(scheduler, lines), torch.Generator().manual_seed(0)), ["a"])

    yield Case(
        f"calibration of {trials} trials",
        search,
        {"as many samplings and scores, no search": plain},
        0.5,
        f"trials per second: {trials} / seconds; a real model's time dwarfs the search's",
    )
