"""What the claims share: sequences of Moving MNIST, the networks, and their one training."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.catalog import Job, Panel, Scale
from everyformer.lab import moving_mnist, train
from everyformer.lab.measure import median, noted_steps, side_by_side
from everyformer.lab.moving_mnist import MovingMNIST
from everyformer.lab.pretrained import load_or_train
from everyformer.lab.train import History
from everyformer.papers.predformer import model, simvp
from everyformer.papers.predformer.model import Arrangement, PredFormer, arranged
from everyformer.papers.predformer.simvp import SimVP

Name = Literal["PredFormer", "PredFormer with an MLP", "SimVP v1", "SimVP v2"]
GIVEN = 10  # frames given, and frames to predict
UNSEEN, UNTRAINED = 7_919, 104_729  # seeds of sequences to test on, and to follow a training by
POINTS = 10  # at which a training is followed
NAMES: tuple[Name, ...] = get_args(Name)


@dataclasses.dataclass(frozen=True)
class Size:
    """Networks of equal parameters, their training, and sequences to test on.

    ``steps`` is PredFormer's training; a rival gets as many as take the same time. ``rates`` are the highest of a training.
    The nine arrangements have ``blocks`` blocks each, and ``short`` steps at PredFormer's rate.
    """

    side: int
    networks: Mapping[Name, Mapping[str, Any]]
    rates: Mapping[Name, float]
    batch: int
    steps: int
    tested: int
    arrangement: Mapping[str, int]
    blocks: int
    short: int


def _networks(
    transformer: Mapping[str, int], hidden: int, translator: int, depths: tuple[int, int], mlp_ratio: int
) -> Mapping[Name, Mapping[str, Any]]:
    convolutions = {"hidden": hidden, "translator": translator}
    return {
        "PredFormer": transformer,
        "PredFormer with an MLP": {**transformer, "gated": False, "mlp_scale": 6},  # two matrices weigh what three do
        "SimVP v1": {**convolutions, "depth": depths[0]},
        "SimVP v2": {**convolutions, "version": 2, "depth": depths[1], "mlp_ratio": mlp_ratio},
    }


def _width(heads: int, head_dim: int, **more: int) -> Mapping[str, int]:
    return {"dim": heads * head_dim, "heads": heads, "head_dim": head_dim, **more}


# At ``cpu`` scale the best of what was tried on another seed: 1, 2, 4 and 8 thousandths for PredFormer and SimVP v1, 2 and
# 4 for their variants; at ``paper`` scale the authors'.
_FOUND: Mapping[Name, float] = {"PredFormer": 4e-3, "PredFormer with an MLP": 4e-3, "SimVP v1": 8e-3, "SimVP v2": 4e-3}
_PUBLISHED: Mapping[Name, float] = dict.fromkeys(NAMES, 1e-3)
SIZES: dict[Scale, Size] = {
    "smoke": Size(32, _networks(_width(1, 20, layers=1), 8, 8, (2, 2), 2), _FOUND, batch=2, steps=10, tested=4,
                  arrangement=_width(1, 8, mlp_scale=2), blocks=4, short=10),
    # Batches of four: with more, there are too few steps in the time to leave the plateau of predicting all alike.
    "cpu": Size(32, _networks(_width(4, 20, layers=1), 16, 64, (3, 2), 4), _FOUND, batch=4, steps=2000, tested=256,
                arrangement=_width(2, 24, mlp_scale=2), blocks=4, short=2000),
    "paper": Size(64, _networks(_width(8, 32, layers=6), 64, 512, (8, 8), 8), _PUBLISHED, batch=16, steps=1_250_000,
                  tested=10_000, arrangement=_width(8, 32, mlp_scale=4), blocks=24, short=1_250_000),
}  # fmt: skip


def network(scale: Scale, name: Name) -> PredFormer | SimVP:
    """One of the networks of a scale; at ``paper`` scale those of the paper, where SimVP is the larger."""
    size = SIZES[scale]
    shape = (GIVEN, 1, size.side, size.side)
    options = size.networks[name]
    return SimVP(shape, **options) if name.startswith("SimVP") else PredFormer(shape, **options)


def arrangement(scale: Scale, name: Arrangement, *, reorder: bool = True) -> PredFormer:
    """One of the nine arrangements, of the same blocks; ``reorder=False`` is the authors' Fac-S-T.

    Layers of three fit into four blocks once: as in the paper's tables for TaxiBJ, the triplets have a quarter less.
    """
    size = SIZES[scale]
    shape = (GIVEN, 1, size.side, size.side)
    blocks = size.blocks - size.blocks % 3 if name in ("tst", "sts") else size.blocks
    return PredFormer(shape, **arranged(name, blocks), **size.arrangement, reorder=reorder)  # type: ignore[arg-type]


class Trained(nn.Module):
    """A network, and how its training went: steps, rate, seconds, and errors on sequences not seen in it."""

    steps: Tensor
    rate: Tensor
    seconds: Tensor
    errors: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("rate", torch.zeros((), dtype=torch.float64))
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        self.register_buffer("errors", torch.zeros(POINTS, dtype=torch.float64))

    def forward(self, frames: Tensor) -> Tensor:
        return self.network(frames)  # type: ignore[no-any-return]

    @torch.no_grad()
    def predict(
        self, video: Float[Tensor, "batch frames 1 height width"]
    ) -> Float[Tensor, "batch frames 1 height width"]:
        """The second half of videos from their first."""
        return torch.cat([self.network(part[:, :GIVEN]) for part in video.split(32)])

    def curve(self) -> tuple[list[float], list[float]]:
        """Seconds of training, and the error by then."""
        share = torch.arange(1, POINTS + 1) / POINTS
        return (share * float(self.seconds)).tolist(), self.errors.tolist()


@functools.cache
def source(scale: Scale, part: Literal["train", "test"]) -> MovingMNIST:
    """Sequences of a scale, of the digits to train on or of the others."""
    images, side = moving_mnist.digits(scale, part), SIZES[scale].side
    return MovingMNIST(moving_mnist.halved(images) if side == 32 else images, 2 * GIVEN, side)


def unseen(job: Job, part: Literal["train", "test"] = "test") -> Float[Tensor, "tested frames 1 height width"]:
    """Sequences to test on: of digits that were not trained on, or new ones of those that were."""
    generator = torch.Generator().manual_seed(UNSEEN + job.seed)
    return source(job.scale, part).draw(SIZES[job.scale].tested, generator).to(job.device)


def trained(job: Job, name: Name) -> Trained:
    """A network trained from the job's seed, or read from the cache: PredFormer, or a rival in the same time."""
    size = SIZES[job.scale]
    torch.manual_seed(job.seed)
    found = Trained(network(job.scale, name))

    def fit(folder: Path) -> None:
        steps = size.steps if name.startswith("PredFormer") else _steps_of_equal_time(job, found, folder / "steps")

        _fit_noted(job, found, name, steps, size.rates[name], folder)

    return _load_or_train(job, found, name, fit)


def arranged_and_trained(job: Job, name: Arrangement, *, reorder: bool = True) -> Trained:
    """One of the nine arrangements after the short training."""
    size = SIZES[job.scale]
    torch.manual_seed(job.seed)
    found = Trained(arrangement(job.scale, name, reorder=reorder))
    label = f"{name}{'' if reorder else ', as published'}"

    def fit(folder: Path) -> None:
        _fit_noted(job, found, label, size.short, size.rates["PredFormer"], folder)

    return _load_or_train(job, found, label, fit)


def loss(net: nn.Module, video: Tensor) -> Tensor:
    """Mean squared error of the second half of a video."""
    return F.mse_loss(net(video[:, :GIVEN]), video[:, GIVEN:])


def _fit_noted(job: Job, found: Trained, label: str, steps: int, rate: float, folder: Path) -> None:
    history = _fit(job, found.network, label, steps, rate, folder)
    found.steps.fill_(history.steps)
    found.rate.fill_(rate)
    found.seconds.fill_(history.seconds)
    found.errors.copy_(torch.tensor(history.validation) * SIZES[job.scale].side ** 2)


def _fit(job: Job, net: nn.Module, label: str, steps: int, rate: float, folder: Path) -> History:
    """The paper's recipe: AdamW, one cycle of the rate, sequences drawn afresh; the error is taken ten times."""
    pieces = [steps // POINTS + (i < steps % POINTS) for i in range(POINTS)]
    sequences, batch = source(job.scale, "train"), SIZES[job.scale].batch
    follow = sequences.draw(min(64, SIZES[job.scale].tested), torch.Generator().manual_seed(UNTRAINED + job.seed))

    def batches(epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * job.seed + epoch)
        for _ in range(pieces[epoch]):
            yield sequences.draw(batch, generator)

    return train.fit(
        net,
        loss,
        batches,
        validation=lambda: follow.split(32),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, rate, weight_decay=1e-2),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=steps, final_div_factor=1e4
        ),
        schedule_every="step",
        steps=steps,
        folder=folder / label,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        strategy=job.strategy,
        label=label,
    )


def _steps_of_equal_time(job: Job, rival: Trained, file: Path) -> int:
    """How many of a rival's steps take the time of PredFormer's training; noted, so that a resumed one keeps to it."""
    size, sequences = SIZES[job.scale], source(job.scale, "train")
    generator = torch.Generator().manual_seed(0)

    def step(net: nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(
            loss(net, sequences.draw(size.batch, generator).to(job.device)), list(net.parameters())
        )

    def count() -> float:
        candidates = {"ours": network(job.scale, "PredFormer"), "theirs": copy.deepcopy(rival.network)}
        times = side_by_side(
            {name: step(net.to(job.device).train()) for name, net in candidates.items()}, rounds=9, device=job.device
        )
        return size.steps * median(times["ours"]) / median(times["theirs"])

    return noted_steps(file, count, at_least=POINTS)


def _load_or_train(job: Job, found: Trained, label: str, fit: Callable[[Path], None]) -> Trained:
    size = dataclasses.asdict(SIZES[job.scale])
    recipe = {**size, "name": label, "seed": job.seed, "precision": job.precision}
    code = (model, simvp, moving_mnist, train, sys.modules[__name__])
    load_or_train(found, fit, recipe=recipe, samples=(source(job.scale, "train").images,), code=code)
    found.to(job.device).eval().requires_grad_(False)
    return found


def strip(videos: Mapping[str, Float[Tensor, "batch frames 1 height width"]]) -> Panel:
    """A film strip: the first sequence of each, one below the other, every third frame from left to right."""
    rows = [torch.cat(list(video[0, ::3, 0].cpu()), dim=1) for video in videos.values()]
    grid = (100 * torch.cat(rows).clamp(0, 1)).round().int().tolist()  # per cent: short in a file
    return Panel(f"Frames 1, 4, 7, 10 ahead: {', '.join(videos)}", "pixel", "pixel", kind="heat", grid=grid)
