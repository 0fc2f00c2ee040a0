"""What the claims tune: a DiT that draws the digits 0 to 4, and four ways to make it draw 5 to 9."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Job, Scale
from everyformer.lab import generation, train
from everyformer.lab.pretrained import load_or_train
from everyformer.lab.quality import frechet_distance
from everyformer.papers.diffscaler.tuner import DiffScalerConfig
from everyformer.parts import diffusion, dit
from everyformer.parts.diffusion import flow_matching_loss, sample
from everyformer.parts.dit import DiT

CLASSES = 5  # of ten: those below are pretrained on, the others are the new data set
DROPPED = 0.1  # labels that are hidden in pretraining, so that the network knows "no class"
HELD_OUT = 0.2  # of the new data set's training digits, to choose the rate on
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
DIFFSCALER, LORA, BITFIT, FULL = "Diffscaler", "LoRA", "BitFit", "full fine-tuning"
METHODS = (DIFFSCALER, LORA, BITFIT, FULL)


@dataclasses.dataclass(frozen=True)
class Size:
    """The DiT, the steps it is pretrained and tuned for, and the digits drawn to measure a distance."""

    dim: int
    depth: int
    heads: int
    batch: int
    pretraining: int
    tuning: int
    drawn: int
    sampling: int


SIZES: dict[Scale, Size] = {
    "smoke": Size(dim=32, depth=1, heads=1, batch=16, pretraining=20, tuning=5, drawn=60, sampling=2),
    "cpu": Size(dim=96, depth=4, heads=3, batch=64, pretraining=1500, tuning=150, drawn=1000, sampling=20),
    "paper": Size(dim=384, depth=12, heads=6, batch=256, pretraining=50_000, tuning=5000, drawn=10_000, sampling=50),
}

Set = tuple[Float[Tensor, "samples 1 16 16"], Int[Tensor, " samples"]]


def part(digits: Set, *, new: bool) -> Set:
    """The digits of the new data set or of the old one; classes count from 0 in each."""
    images, labels = digits
    chosen = (labels >= CLASSES) == new
    return images[chosen], labels[chosen] - CLASSES * new


def network(size: Size) -> DiT:
    """The untrained DiT."""
    return DiT(
        image_size=generation.SIDE,
        patch=4,
        channels=1,
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        classes=CLASSES,
    )


def pretrained(scale: Scale, *, device: str = "cpu") -> DiT:
    """A DiT that draws the digits 0 to 4, from the cache where it is there; its embedding has new rows for new classes.

    They start as the row of no class, for every method alike.
    """
    size, shown = SIZES[scale], part(generation.digits(scale).train, new=False)
    torch.manual_seed(0)
    model = network(size)

    def fit(folder: Path) -> None:
        _fit(
            model, shown, steps=size.pretraining, rate=2e-3, batch=size.batch, seed=0, folder=folder, device=device,
            label="pretraining",
        )  # fmt: skip

    load_or_train(
        model, fit, recipe=dataclasses.asdict(size), samples=shown, code=(diffusion, dit, train, sys.modules[__name__])
    )
    label: Any = model.label
    with torch.no_grad():
        label.weight[:] = label.weight[-1].clone()
    return model.cpu()


def tuned(method: str, base: DiT) -> nn.Module:
    """A copy of which just that is trained what a method trains; each trains the embedding of the classes in full."""
    model = copy.deepcopy(base)
    if method == DIFFSCALER:
        return peft.get_peft_model(model, DiffScalerConfig())  # type: ignore[no-any-return]
    if method == LORA:
        return peft.get_peft_model(model, lora(base))  # type: ignore[no-any-return]
    if method == BITFIT:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") or name.startswith("label"))
    return model


def lora(base: DiT) -> peft.LoraConfig:
    """LoRA at every linear layer, of the lowest rank at which it trains no fewer parameters than Diffscaler."""
    layers = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    label: Any = base.label
    goal = trained(tuned(DIFFSCALER, base)) - label.weight.numel()
    rank = -(-goal // sum(layer.in_features + layer.out_features for layer in layers.values()))
    return peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), modules_to_save=["label"])


def trained(model: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a method came to: distance to held-out digits, share of digits read as their class, the rate chosen, drawings."""

    distance: float
    agreement: float
    rate: float
    parameters: int
    drawings: Float[Tensor, "classes 1 16 16"]


def best(method: str, base: DiT, job: Job) -> tuple[nn.Module, float]:
    """Tune at every rate; the model that is best on held-out training digits, and its rate."""
    size = SIZES[job.scale]
    images, labels = part(generation.digits(job.scale).train, new=True)
    kept = len(images) - round(HELD_OUT * len(images))
    found = {}
    for rate in RATES:
        torch.manual_seed(job.seed)
        model = tuned(method, base).to(job.device)
        _fit(
            model, (images[:kept], labels[:kept]), steps=size.tuning, rate=rate, batch=size.batch, seed=job.seed,
            folder=job.folder / f"{method}, rate {rate:g}", device=job.device, precision=job.precision,
            strategy=job.strategy, label=f"{method}, rate {rate:g}",
        )  # fmt: skip
        found[rate] = model.eval().to(job.device)
    rate = min(RATES, key=lambda rate: _loss(found[rate], (images[kept:], labels[kept:]), job.device))
    return found[rate], rate


def outcome(method: str, base: DiT, job: Job) -> Outcome:
    """Tune, and measure what the best model draws."""
    size = SIZES[job.scale]
    model, rate = best(method, base, job)
    generator = torch.Generator().manual_seed(100_000 + job.seed)
    wanted = torch.arange(size.drawn, device=job.device) % CLASSES
    noise = torch.randn(size.drawn, 1, generation.SIDE, generation.SIDE, generator=generator).to(job.device)
    drawn = sample(model, noise, wanted, steps=size.sampling).clamp(-1, 1)
    judge = generation.judge(job.scale, seed=0, device=job.device)
    natural = part(generation.digits(job.scale).test, new=True)[0].to(job.device)
    distance = frechet_distance(judge.features(drawn), judge.features(natural))
    agreement = float((judge(drawn).argmax(-1) == wanted + CLASSES).float().mean())
    return Outcome(distance, agreement, rate, trained(model), drawn[:CLASSES].cpu())


@torch.no_grad()
def _loss(model: nn.Module, digits: Set, device: str) -> float:
    """The loss on all of some digits, at the same noise and levels for every model."""
    images, labels = (tensor.to(device) for tensor in digits)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(images.shape, generator=generator).to(device)
    sigmas = torch.rand(len(images), generator=generator).to(device)
    return float(flow_matching_loss(model, images, labels, noise=noise, sigmas=sigmas))


def _fit(
    model: nn.Module,
    shown: Set,
    *,
    steps: int,
    rate: float,
    batch: int,
    seed: int,
    folder: Path,
    label: str,
    device: str = "cpu",
    precision: str = "32-true",
    strategy: str = "auto",
) -> None:
    """The one recipe, for pretraining and for every method."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randint(len(shown[0]), (batch,), generator=generator)
        hidden = torch.rand(batch, generator=generator) < DROPPED
        noise = torch.randn(batch, *shown[0].shape[1:], generator=generator)
        labels = shown[1][index].masked_fill(hidden, CLASSES)
        return shown[0][index], labels, noise, torch.rand(batch, generator=generator)

    def step(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        images, labels, noise, sigmas = batch
        return flow_matching_loss(module, images, labels, noise=noise, sigmas=sigmas)

    train.fit_drawn(
        model, step, draw, steps=steps, rate=rate, folder=folder, seed=seed, device=device, precision=precision,
        strategy=strategy, label=label,
    )  # fmt: skip
