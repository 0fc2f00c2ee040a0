"""The scenes and models that the claims share: one model of each family, trained for the same time from the job's seed."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from everyformer.catalog import Job, Scale
from everyformer.lab import scenes, train
from everyformer.lab.measure import median, noted_steps, side_by_side
from everyformer.lab.pretrained import load_or_train
from everyformer.lab.simulated import load_or_make
from everyformer.papers.feedforward_3d import blocks, cameras, heads, losses, multiview, pair
from everyformer.papers.feedforward_3d.answers import in_first, to_first
from everyformer.papers.feedforward_3d.losses import multiview_loss, pair_loss
from everyformer.papers.feedforward_3d.model import MultiViewModel, PairModel, multi_tiny, pair_tiny

VIEWS = 8  # rendered of every scene
TOGETHER = (2, 4, 8)  # views that the multi-view model learns from at once
STORED = ("images", "depth", "extrinsics", "intrinsics")
PART = 20  # scenes in a part of the rendered set, textured and plain in turn
CLIP = 1.0  # the norm of gradients, as VGGT has it
UNSEEN = 7_919  # seed of the scenes that everything is tested on
TUNING = 104_729  # and of those that the classic pipeline is tuned on


@dataclasses.dataclass(frozen=True)
class Size:
    """Pixels of a side, scenes to train on, images of a step, steps of the pair model, its rate, scenes to test on.

    ``aligned`` are the scenes on which global alignment is tried, ``descent`` its steps.
    """

    side: int
    scenes: int
    batch: int
    steps: int
    rate: float
    tested: int
    tuned: int
    aligned: int
    descent: int
    pair: dict[str, Any]
    multi: dict[str, Any]


SIZES: dict[Scale, Size] = {
    "smoke": Size(
        side=32, scenes=4, batch=8, steps=3, rate=1e-3, tested=3, tuned=2, aligned=1, descent=3,
        pair={"dim": 32, "depth": 1, "heads": 2, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
        multi={"image_size": 32, "dim": 32, "depth": 1, "heads": 2, "encoder_depth": 1, "camera_depth": 1,
               "layers": (0, 0, 0, 0), "features": 8, "layer_dims": (8, 8, 8, 8), "last": 8},
    ),
    "cpu": Size(
        side=64, scenes=600, batch=16, steps=2000, rate=1e-3, tested=100, tuned=12, aligned=6, descent=300,
        pair={"patch": 16},
        multi={"patch": 16, "encoder_depth": 2, "features": 16, "layer_dims": (16, 16, 32, 32), "last": 16},
    ),
    "paper": Size(
        side=128, scenes=20_000, batch=128, steps=200_000, rate=3e-4, tested=1000, tuned=100, aligned=100, descent=300,
        pair={"dim": 384, "depth": 12, "heads": 6, "decoder_dim": 384, "decoder_depth": 8, "decoder_heads": 6},
        multi={"image_size": 128, "dim": 384, "depth": 8, "heads": 6, "layers": (1, 3, 5, 7)},
    ),
}  # fmt: skip


def pair_model(job: Job) -> PairModel:
    """A pair model trained from the job's seed, or read from the cache."""
    size = SIZES[job.scale]
    torch.manual_seed(job.seed)
    net = pair_tiny(**size.pair)

    def fit(folder: Path) -> None:
        _fit(job, net, _pair_step, functools.partial(_draw_pairs, job.scale), size.steps, folder, "pair model")

    _load_or_train(job, net, fit)
    return net


def multi_model(job: Job) -> tuple[MultiViewModel, int]:
    """A multi-view model trained for as long as the pair model takes on this machine, and its steps."""
    size = SIZES[job.scale]
    torch.manual_seed(job.seed)
    net = _Counted(multi_tiny(**size.multi))

    def fit(folder: Path) -> None:
        steps = _steps_of_equal_time(job, net, folder / "steps")
        net.steps.fill_(steps)
        draw = functools.partial(_draw_many, job.scale)
        _fit(job, net, _multi_step, draw, steps, folder / "model", "multi-view model")

    _load_or_train(job, net, fit)
    return net.network, int(net.steps)


def unseen(job: Job, number: int, count: int, *, textured: bool) -> scenes.Views:
    """``count`` scenes of ``number`` views that were not trained on, the same for all models of a seed."""
    generator = torch.Generator().manual_seed(UNSEEN + 2 * job.seed + textured)
    return scenes.views(count, number, generator, textured=textured, size=SIZES[job.scale].side)


def tuning(job: Job, *, textured: bool) -> scenes.Views:
    """Further scenes of two views, to choose the classic pipeline's settings on."""
    size, generator = SIZES[job.scale], torch.Generator().manual_seed(TUNING + 2 * job.seed + textured)
    return scenes.views(size.tuned, 2, generator, textured=textured, size=size.side)


@functools.cache
def _rendered(scale: Scale) -> dict[str, Tensor]:
    """The scenes to train on, the same for every seed: images as bytes, depth in half precision, cameras."""
    size = SIZES[scale]

    def make(part: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(part)
        views = scenes.views(min(PART, size.scenes), VIEWS, generator, textured=part % 2 == 0, size=size.side)
        return {
            "images": (views.images * 255).round().byte(),
            "depth": views.depth.half(),
            "extrinsics": views.extrinsics,
            "intrinsics": views.intrinsics,
        }

    settings = {"side": size.side, "scenes": size.scenes, "views": VIEWS, "part": PART}
    parts = max(2, size.scenes // PART)
    return load_or_make("rooms", make, parts=parts, settings=settings, code=(scenes,))


def _drawn(scale: Scale, count: int, number: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Images, depth, points and cameras of ``number`` views of ``count`` scenes; the world is the first view's camera.

    Colour channels change places, so that a colour means nothing.
    """
    kept = _rendered(scale)
    scene = torch.randint(len(kept["images"]), (count, 1), generator=generator)
    view = torch.rand(count, VIEWS, generator=generator).argsort(1)[:, :number]
    channel = torch.rand(count, 3, generator=generator).argsort(1)
    images, depth, extrinsics, intrinsics = (kept[name][scene, view] for name in STORED)
    images = images.gather(2, channel[:, None, :, None, None].expand_as(images)).float() / 255
    depth = depth.float()
    points = in_first(cameras.unproject(depth, extrinsics, intrinsics), extrinsics)
    return images, depth, points, to_first(extrinsics), intrinsics


def _draw_pairs(scale: Scale, generator: torch.Generator) -> tuple[Tensor, ...]:
    images, _, points, *_ = _drawn(scale, SIZES[scale].batch // 2, 2, generator)
    return images[:, 0], images[:, 1], points[:, 0], points[:, 1]


def _draw_many(scale: Scale, generator: torch.Generator) -> tuple[Tensor, ...]:
    number = TOGETHER[int(torch.randint(len(TOGETHER), (), generator=generator))]
    return _drawn(scale, max(1, SIZES[scale].batch // number), number, generator)


def _pair_step(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    image1, image2, points1, points2 = batch
    first, second = net(image1, image2)
    return pair_loss(first, second, points1, points2)


def _multi_step(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    images, depth, points, extrinsics, intrinsics = batch
    found = net(images)
    # Points come from depth and cameras, which VGGT finds better than those of its point head: that is not trained.
    found = found._replace(points=found.points.detach())
    return multiview_loss(found, depth=depth, points=points, extrinsics=extrinsics, intrinsics=intrinsics).total


class _Counted(nn.Module):
    """A network and the steps it was trained for, which its weights' file keeps."""

    steps: Int[Tensor, ""]

    def __init__(self, network: MultiViewModel) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def _steps_of_equal_time(job: Job, net: nn.Module, file: Path) -> int:
    """How many multi-view steps take the time of the pair model's training; noted, so that a resumed one keeps to it."""
    size = SIZES[job.scale]

    def step(model: nn.Module, loss: Callable[..., Tensor], batch: tuple[Tensor, ...]) -> Callable[[], object]:
        needed = list(model.parameters())
        return lambda: torch.autograd.grad(loss(model, batch), needed, allow_unused=True)

    def count() -> float:
        generator = torch.Generator().manual_seed(0)
        candidates = {"pair": step(pair_tiny(**size.pair), _pair_step, _draw_pairs(job.scale, generator))}
        for number in TOGETHER:
            batch = _drawn(job.scale, max(1, size.batch // number), number, generator)
            candidates[f"{number} views"] = step(net, _multi_step, batch)
        times = {name: median(found) for name, found in side_by_side(candidates, rounds=5).items()}
        ours = sum(times[f"{number} views"] for number in TOGETHER) / len(TOGETHER)
        return size.steps * times["pair"] / ours

    return noted_steps(file, count)


def _fit(
    job: Job,
    net: nn.Module,
    step: Callable[[nn.Module, Any], Tensor],
    draw: Callable[[torch.Generator], tuple[Tensor, ...]],
    steps: int,
    folder: Path,
    name: str,
) -> None:
    """The one recipe: Adam on clipped gradients, a rate that rises for a twentieth of the steps and falls to zero.

    Camera tokens start near zero, where a norm makes of their first gradients ones of thousands: without clipping, Adam's
    steps stay small for all of a training as short as this.
    """
    train.fit_drawn(
        net, step, draw, steps=steps, rate=SIZES[job.scale].rate, warm=max(1, steps // 20), clip=CLIP, folder=folder,
        seed=job.seed, device=job.device, precision=job.precision, strategy=job.strategy, label=name,
    )  # fmt: skip


def _load_or_train(job: Job, net: nn.Module, fit: Callable[[Path], None]) -> None:
    recipe = {**dataclasses.asdict(SIZES[job.scale]), "seed": job.seed, "precision": job.precision}
    code = (pair, multiview, blocks, heads, cameras, losses, scenes, train, sys.modules[__name__])
    load_or_train(net, fit, recipe=recipe, samples=(), code=code)
    net.to(job.device).eval().requires_grad_(False)
