"""What Q-Sched gains on digits: a few-step DiT in W4A8, calibrated on sixteen prompts, judged on unseen noise."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import LCMScheduler, TCDScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Job, Panel
from everyformer.lab.generation import Judge, digits, draw, few_step_digits, judge
from everyformer.lab.quality import frechet_distance
from everyformer.papers.qsched.calibration import Calibration, calibrate, jaq_loss
from everyformer.papers.qsched.method import Coefficients, QSchedScheduler
from everyformer.papers.qsched.precision import quantise

PROMPTS = 16
REPEATS = 4  # noises that each prompt is drawn from during calibration
PATCH = 4  # side of the patches whose statistics make an image natural
SCORER, JUDGE = 1, 2  # seeds of the classifier that calibration sees, and of the one that measures


@dataclasses.dataclass(frozen=True)
class Size:
    """Trials of the calibration, and digits drawn to measure a distance."""

    budget: int
    drawn: int


SIZES = {"smoke": Size(6, 100), "cpu": Size(100, 1000), "paper": Size(100, 10_000)}


@dataclasses.dataclass(frozen=True)
class Study:
    """Fréchet distance and class agreement of each candidate, what the calibration found, and drawings to look at."""

    distances: dict[str, float]
    agreement: dict[str, float]
    found: Calibration
    drawings: dict[str, Tensor]

    def gain(self, name: str) -> float:
        """By how many per cent ``name``'s distance is below full precision's."""
        return 100 * (1 - self.distances[name] / self.distances["full precision"])

    def extras(self) -> dict[str, float]:
        """Every figure of the study."""
        figures = {f"Fréchet distance, {name}": value for name, value in self.distances.items()}
        figures |= {f"class agreement, {name} (%)": 100 * value for name, value in self.agreement.items()}
        figures |= {f"gain over full precision, {name} (%)": self.gain(name) for name in list(self.distances)[1:]}
        for kind in ("model", "sample"):
            values = getattr(self.found.coefficients, kind)
            figures |= {f"{kind} coefficient, first step": values[0], f"{kind} coefficient, last step": values[-1]}
        return figures | {"calibration score": self.found.score, "score of all ones": self.found.uncalibrated}

    def panels(self) -> tuple[Panel, ...]:
        """Distances, the calibration, the coefficients, and digits of each candidate."""
        names = list(self.distances)
        places = [float(index) for index in range(len(names))]
        best = torch.tensor(self.found.history).cummax(0).values.tolist()
        steps = [float(step + 1) for step in range(len(self.found.coefficients.model))]
        trials = [float(trial + 1) for trial in range(len(best))]
        drawings = torch.cat([torch.cat(list(drawn[:, 0]), dim=1) for drawn in self.drawings.values()], dim=0)
        return (
            Panel("Distance to held-out digits", "", "Fréchet distance",
                  {"": (places, list(self.distances.values()))}, kind="bar", ticks=names),
            Panel("Calibration", "trials", "score",
                  {"trial": (trials, list(self.found.history)), "best so far": (trials, best)}),
            Panel("Coefficients found", "step", "coefficient",
                  {kind: (steps, list(getattr(self.found.coefficients, kind))) for kind in ("model", "sample")}),
            Panel(f"Digits: {', '.join(self.drawings)}", "pixel", "pixel", kind="heat", grid=drawings.tolist()),
        )  # fmt: skip


def agreement(scorer: Judge) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """Text-image compatibility of digits: the probability that ``scorer`` gives to the prompt's class."""

    def score(images: Float[Tensor, "batch 1 16 16"], prompts: Sequence[int]) -> Float[Tensor, " batch"]:
        labels = repeated(prompts, len(images)).to(images.device)
        return scorer(images).softmax(-1).gather(1, labels[:, None])[:, 0]

    return score


def naturalness(natural: Float[Tensor, "samples 1 16 16"]) -> Callable[[Tensor, Sequence[int]], float]:
    """No-reference quality as NIQE takes it: minus the distance between statistics of patches and natural ones'.

    Of patches of ``natural`` images, mean and covariance are kept; images are compared by the Mahalanobis distance of
    the means under the average covariance. Source: Mittal et al., "Making a completely blind image quality analyzer"
    (2013), equation 10, with mean, spread, horizontal and vertical contrast of a patch for its statistics.
    """

    def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
        patches = images[:, 0].unfold(1, PATCH, PATCH // 2).unfold(2, PATCH, PATCH // 2).flatten(0, 2).double()
        columns = [
            patches.mean((1, 2)), patches.std((1, 2)),
            patches.diff(dim=2).abs().mean((1, 2)), patches.diff(dim=1).abs().mean((1, 2)),
        ]  # fmt: skip
        values = torch.stack(columns, dim=1)
        return values.mean(0), torch.cov(values.T)

    mean, covariance = statistics(natural)

    def score(images: Float[Tensor, "batch 1 16 16"], prompts: Sequence[int]) -> float:
        ours, spread = statistics(images)
        return -float(((ours - mean) @ torch.linalg.solve((spread + covariance) / 2, ours - mean)).sqrt())

    return score


def repeated(prompts: Sequence[int], images: int) -> Int[Tensor, " images"]:
    """The class of each image, where every prompt was drawn as often as every other."""
    return torch.tensor(list(prompts)).repeat(images // len(prompts))


def study(job: Job, scheduler: Any, steps: int) -> Study:
    """Draw by the model in full precision, quantised, and quantised with coefficients calibrated for it."""
    size, held_out = SIZES[job.scale], digits(job.scale).test[0]
    full = few_step_digits(job.scale, device=job.device)
    quantised = quantise(copy.deepcopy(full))
    scorer, measure = (judge(job.scale, seed=seed, device=job.device) for seed in (SCORER, JUDGE))

    def generate(prompts: Sequence[int], wrapped: QSchedScheduler, generator: torch.Generator) -> Tensor:
        labels = repeated(prompts, REPEATS * len(prompts)).to(job.device)
        return draw(quantised, labels, wrapped, steps, generator)

    score = jaq_loss(agreement(scorer), naturalness(digits(job.scale).train[0].to(job.device)))
    prompts = torch.randperm(2 * PROMPTS, generator=torch.Generator().manual_seed(job.seed))[:PROMPTS] % 10
    found = calibrate(
        generate, prompts.tolist(), score, steps=steps, budget=size.budget, scheduler=scheduler, free_ends=True,
        seed=job.seed, storage=job.folder / "calibration.journal",
    )  # fmt: skip

    ones = Coefficients.line(steps)
    candidates: dict[str, tuple[nn.Module, Coefficients]] = {
        "full precision": (full, ones),
        "quantised": (quantised, ones),
        "Q-Sched": (quantised, found.coefficients),
        # How much of the gain is the sampler's own, whatever the precision.
        "full precision, Q-Sched's coefficients": (full, found.coefficients),
    }
    labels = torch.arange(size.drawn, device=job.device) % 10
    natural = measure.features(held_out.to(job.device))
    distances, agreements, drawings = {}, {}, {}
    for name, (model, coefficients) in candidates.items():
        # The same noise for all, and none that a calibration starts from.
        generator = torch.Generator().manual_seed(100_000 + job.seed)
        drawn = draw(model, labels, QSchedScheduler.wrap(scheduler, coefficients), steps, generator)
        distances[name] = frechet_distance(measure.features(drawn), natural)
        agreements[name] = float((measure(drawn).argmax(-1) == labels).float().mean())
        drawings[name] = drawn[:10].cpu()
    return Study(distances, agreements, found, drawings)


def lcm(job: Job) -> Study:
    """Four steps of the latent consistency models' sampler."""
    return study(job, LCMScheduler(prediction_type="v_prediction"), 4)


def pcm(job: Job) -> Study:
    """Eight steps of the sampler that phased consistency models use."""
    return study(job, TCDScheduler(prediction_type="v_prediction"), 8)
