"""What the claims share: two flows, four models trained on each with one recipe and one search, and their rollouts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.catalog import Job, Scale
from everyformer.lab import channel as channels
from everyformer.lab import flow_statistics, train, turbulence
from everyformer.lab.pretrained import load_or_train
from everyformer.papers.ifactformer import forecast, model, rivals
from everyformer.papers.ifactformer.forecast import Forecaster, pairs, relative_error, rollout
from everyformer.papers.ifactformer.model import IFactFormer

Where = Literal["kolmogorov", "channel"]
Flow = Float[Tensor, "trajectories time *grid channels"]
OURS, ORIGINAL = "IFactFormer-m", "IFactFormer-o"
MODELS = (OURS, ORIGINAL, "FNO", "IFNO")
RATES = (1e-3, 2e-3, 4e-3)  # every model has its choice of these
TRIAL = 12  # a rate is tried for a twelfth of the training's steps
LATE = 0.25  # the last part of a rollout, by which it is judged
KNOWS = 0.5  # a model of more than this share of the error of "no change" has not learned the flow
ALIVE = 2.0  # a flow that lives changes as fast as the true one, and as long, within this factor
BURST = 100.0
FAILED = 1.0  # the error of statistics that a rollout gets which is not alive: a decade, or all of the profile


@dataclasses.dataclass(frozen=True)
class Size:
    """A flow's data and the models and training for it."""

    interval: float
    trajectories: int  # to train on, the last of them to choose the rate by
    tested: int
    snapshots: int
    rolled: int  # snapshots of a long rollout
    dim: int
    heads: int
    head_dim: int
    iterations: int
    modes: tuple[int, ...]
    width: int  # of FNO
    implicit: int  # width of IFNO
    batch: int
    steps: int


SIZES: dict[Where, dict[Scale, Size]] = {
    "kolmogorov": {
        "smoke": Size(0.4, 2, 1, 6, 6, 12, 1, 4, 2, (4, 4), 4, 4, 2, 4),
        "cpu": Size(0.4, 16, 8, 100, 250, 48, 2, 16, 3, (10, 10), 10, 20, 4, 2400),
        "paper": Size(0.4, 64, 8, 400, 1000, 96, 5, 96, 10, (16, 16), 32, 64, 5, 96_000),
    },
    "channel": {
        "smoke": Size(0.4, 2, 1, 4, 4, 12, 1, 4, 2, (4, 4, 4), 4, 4, 1, 3),
        "cpu": Size(0.4, 4, 2, 150, 150, 36, 2, 12, 3, (6, 8, 6), 5, 10, 2, 800),
        "paper": Size(0.4, 16, 4, 400, 1000, 96, 5, 96, 10, (12, 16, 8), 24, 48, 5, 76_000),
    },
}
# Time steps of the solvers, a quarter or more below the limit at the highest speeds that were met.
PLANE_STEP, WALL_STEP = 0.0125, 0.4 / 14
# Coarse grids and short starts for the smoke runs, that a test can pay for.
KOLMOGOROV = {"smoke": {"grid": 32, "keep": 16, "spinup": 2.0}, "cpu": {}, "paper": {}}
CHANNEL = {"smoke": {"grid": (8, 17, 8), "keep": (8, 9, 8), "spinup": 0.4}, "cpu": {}, "paper": {}}


@dataclasses.dataclass(frozen=True)
class Data:
    """A flow to train on, to choose rates on, and to test on, with the coordinates of its grid."""

    training: Flow
    validation: Flow
    test: Flow
    coordinates: list[Float[Tensor, " points"]]


@functools.cache
def data(where: Where, scale: Scale) -> Data:
    """The same for all seeds: simulated once, trajectories that share nothing."""
    size = SIZES[where][scale]
    shown, tested = size.trajectories, size.tested
    longer = size.rolled + 1
    if where == "kolmogorov":
        options: dict[str, object] = {"interval": size.interval, "dt": PLANE_STEP, **KOLMOGOROV[scale]}
        first = turbulence.kolmogorov(shown, size.snapshots, seed=0, **options)  # type: ignore[arg-type]
        last = turbulence.kolmogorov(tested, longer, seed=1, **options)  # type: ignore[arg-type]
        points = torch.arange(first.shape[2]) * (2 * math.pi / first.shape[2])
        coordinates = [points, points]
    else:
        options = {"interval": size.interval, "dt": WALL_STEP, **CHANNEL[scale]}
        first, y = channels.channel(shown, size.snapshots, seed=0, **options)  # type: ignore[arg-type]
        last, _ = channels.channel(tested, longer, seed=1, **options)  # type: ignore[arg-type]
        along, across = (
            torch.arange(count) * (length / count)
            for count, length in zip((first.shape[2], first.shape[4]), channels.MINIMAL_BOX, strict=True)
        )
        coordinates = [along, y.float(), across]
    return Data(first[:-1], first[-1:], last, coordinates)


def network(size: Size, name: str, channels: int) -> nn.Module:
    """An untrained model by its name, for fields of so many components."""
    if name in (OURS, ORIGINAL):
        return IFactFormer(
            in_channels=channels, out_channels=channels, dim=size.dim, heads=size.heads, head_dim=size.head_dim,
            iterations=size.iterations, attention="parallel" if name == OURS else "chained", dims=len(size.modes),
        )  # fmt: skip
    if name == "FNO":
        return rivals.FNO(channels, modes=size.modes, width=size.width)
    return rivals.IFNO(channels, modes=size.modes, width=size.implicit, iterations=size.iterations)


def forecaster(job: Job, where: Where, name: str) -> Forecaster:
    """A model trained from the job's seed, or read from the cache; its rate is the best of ``RATES`` after a trial."""
    size, shown = SIZES[where][job.scale], data(where, job.scale)
    torch.manual_seed(job.seed)
    net = network(size, name, shown.training.shape[-1])
    made = Forecaster(net, shown.training, shown.coordinates if name in (OURS, ORIGINAL) else ())

    def fit(folder: Path) -> None:
        if job.scale == "smoke":
            rate = RATES[0]
        else:
            trials = {rate: _trial(job, where, name, made, rate, folder / f"rate {rate:g}") for rate in RATES}
            rate = min(trials, key=lambda rate: trials[rate])
        _fit(job, where, name, made, size.steps, rate, folder / "model")

    recipe = {**dataclasses.asdict(size), "name": name, "seed": job.seed, "precision": job.precision}
    load_or_train(
        made, fit, recipe=recipe, samples=(shown.training, shown.validation),
        code=(model, forecast, rivals, train, sys.modules[__name__]),
    )  # fmt: skip
    return made.to(job.device).eval().requires_grad_(False)


def _trial(job: Job, where: Where, name: str, made: Forecaster, rate: float, folder: Path) -> float:
    """The error on the trajectory for validation after a short training of a copy."""
    candidate = copy.deepcopy(made)
    _fit(job, where, name, candidate, max(1, SIZES[where][job.scale].steps // TRIAL), rate, folder)
    return one_step(candidate.eval(), data(where, job.scale).validation, job.device)


def _fit(job: Job, where: Where, name: str, made: Forecaster, steps: int, rate: float, folder: Path) -> None:
    size = SIZES[where][job.scale]
    inputs, targets = pairs(data(where, job.scale).training)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(inputs), (size.batch,), generator=generator)
        return inputs[chosen], targets[chosen]

    train.fit_drawn(
        made, loss, draw, steps=steps, rate=rate, warm=min(50, steps // 10), folder=folder, seed=job.seed,
        device=job.device, precision=job.precision, strategy=job.strategy, label=f"{name}, {where}, rate {rate:g}",
    )  # fmt: skip


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The authors' loss: the mean of the fields' relative errors, in physical units."""
    return relative_error(net(batch[0]), batch[1]).mean()


@torch.no_grad()
def one_step(net: Callable[[Tensor], Tensor], flow: Flow, device: str = "cpu") -> float:
    """Mean relative error of the next snapshot, by a model on a device."""
    inputs, targets = (part.split(64) for part in pairs(flow))
    parts = ((part.to(device), truth.to(device)) for part, truth in zip(inputs, targets, strict=True))
    return float(torch.cat([relative_error(net(part), truth) for part, truth in parts]).mean())


def unchanged(window: Float[Tensor, "batch time *grid channels"]) -> Float[Tensor, "batch *grid channels"]:
    """The forecast that nothing happens."""
    return window[:, -1]


def rolled(net: Callable[[Tensor], Tensor], truth: Flow, device: str = "cpu") -> Flow:
    """What a model makes of the first snapshots of true ones, until a value is ``BURST`` times the largest true one."""
    made, most = [truth[:, 0]], BURST * float(truth.abs().max())
    for field in rollout(net, truth[:, :1].to(device), truth.shape[1] - 1, broken="stop"):
        if float(field.abs().max()) > most:
            break
        made.append(field.cpu())
    return torch.stack(made, 1)


@dataclasses.dataclass(frozen=True)
class Life:
    """How a late rollout lives beside the true flow: ratios of one are the truth's."""

    one_step: float  # error of the next snapshot beside that of no change
    change: float  # from snapshot to snapshot
    memory: float  # the time that correlations last
    rms: float
    complete: bool  # no value burst

    @property
    def alive(self) -> bool:
        """Whether the model has learned the flow, and its rollout moves like it to the end."""
        ratios = (self.change, self.memory)
        return self.complete and self.one_step < KNOWS and all(1 / ALIVE < ratio < ALIVE for ratio in ratios)


def late(flow: Flow, length: int) -> Flow:
    """The last quarter of a rollout of ``length`` snapshots; of a broken one, its last snapshots."""
    return flow[:, -max(2, round(LATE * length)) :]


def life(made: Flow, truth: Flow, interval: float, one_step_ratio: float) -> Life:
    """Whether a rollout lives; ``one_step_ratio`` is its model's error beside that of no change."""
    whole = made.shape == truth.shape
    if not whole:
        return Life(one_step_ratio, 0.0, 0.0, 0.0, complete=False)
    ends = [late(flow, truth.shape[1]) for flow in (made, truth)]
    mean = truth.mean((0, 1))  # of all times: that of a short end would take a part of its fluctuations away
    change, memory, rms = (
        _ratio(*(measure(end) for end in ends))
        for measure in (
            lambda end: sum(flow_statistics.relative_change(one) for one in end) / len(end),
            lambda end: sum(min(flow_statistics.correlation_time(one, interval, mean=mean), interval * len(one))
                            for one in end) / len(end),
            lambda end: float((end - mean).square().mean().sqrt()),
        )
    )  # fmt: skip
    return Life(one_step_ratio, change, memory, rms, complete=True)


def _ratio(made: float, true: float) -> float:
    ratio = made / true if true else 0.0
    return ratio if math.isfinite(ratio) else 0.0  # of a field that is zero
