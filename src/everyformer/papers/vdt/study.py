"""What the claims share: digits in motion, the models trained on them once, and what the models generate."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from everyformer.catalog import Job, Scale
from everyformer.lab import moving_digits, train
from everyformer.lab.measure import median, noted_steps, side_by_side
from everyformer.lab.moving_digits import SIDE, digits, videos
from everyformer.lab.pretrained import load_or_train
from everyformer.papers.vdt import diffusion, masks, model, pipeline, rivals
from everyformer.papers.vdt.diffusion import linear_alphas, masked_diffusion_loss
from everyformer.papers.vdt.masks import Task, random_masks, task_mask
from everyformer.papers.vdt.model import VDT
from everyformer.papers.vdt.pipeline import VDTPipeline
from everyformer.papers.vdt.rivals import SimVP, Watcher
from everyformer.parts import dit

Kind = Literal["unified", "prediction only", "without temporal attention"]
TIMESTEPS = 1000
CELL, CHANNELS = 4, 4  # pixels on a side of a latent's cell, and numbers that stand for them
CELLS = SIDE // CELL
UNSEEN = 7_919  # seed of the videos that everything is tested on
RATES = (5e-4, 2e-3, 5e-3)  # among which SimVP has its choice; VDT's was found by hand


class Latents:
    """Frames of 32 x 32 pixels as 4 channels of 8 x 8: principal components of patches of 4 x 4, in the VAE's stead.

    They are found on ``video`` and scaled together, so that an error of latents is one of pixels.
    """

    def __init__(self, video: Float[Tensor, "batch frames 1 height width"]) -> None:
        patches = self._patches(video).flatten(0, -2)
        self.mean = patches.mean(0)
        self.basis = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors[:, -CHANNELS:]
        self.scale = ((patches - self.mean) @ self.basis).std()

    def encode(self, video: Float[Tensor, "batch frames 1 32 32"]) -> Float[Tensor, "batch frames 4 8 8"]:
        """Latents of videos."""
        codes = (self._patches(video) - self.mean) @ self.basis / self.scale
        return rearrange(codes, "b f h w c -> b f c h w")

    def decode(self, latents: Float[Tensor, "batch frames 4 8 8"]) -> Float[Tensor, "batch frames 1 32 32"]:
        """Videos in [-1, 1]."""
        patches = rearrange(latents, "b f c h w -> b f h w c") * self.scale @ self.basis.T + self.mean
        return rearrange(patches, "b f h w (p q) -> b f 1 (h p) (w q)", p=CELL).clamp(-1, 1)

    @staticmethod
    def _patches(video: Tensor) -> Tensor:
        return rearrange(video, "b f 1 (h p) (w q) -> b f h w (p q)", p=CELL, q=CELL)


@dataclasses.dataclass(frozen=True)
class Size:
    """The videos, the model, steps of training and of sampling, and videos to test on.

    The first half of the frames is given in prediction, every fourth in interpolation.
    """

    frames: int
    patch: int
    dim: int
    depth: int
    heads: int
    batch: int
    steps: int
    rate: float
    watcher: int
    sampling: int
    tested: int


SIZES: dict[Scale, Size] = {
    "smoke": Size(8, patch=4, dim=16, depth=1, heads=2, batch=4, steps=6, rate=2e-3, watcher=6, sampling=2, tested=4),
    "cpu": Size(12, patch=4, dim=64, depth=4, heads=2, batch=8, steps=4200, rate=2e-3, watcher=400, sampling=10,
                tested=192),
    "paper": Size(16, patch=2, dim=384, depth=12, heads=6, batch=64, steps=200_000, rate=1e-4, watcher=5_000,
                  sampling=250, tested=2048),
}  # fmt: skip


def network(size: Size, kind: Kind = "unified") -> VDT:
    """VDT of latents whose variance is not learned."""
    return VDT(
        image_size=CELLS, patch=size.patch, channels=CHANNELS, frames=size.frames, dim=size.dim, depth=size.depth,
        heads=size.heads, learn_sigma=False, temporal=kind != "without temporal attention",
    )  # fmt: skip


def vdt(job: Job, kind: Kind) -> VDT:
    """A VDT trained from the job's seed, or read from the cache; ``kind`` says on which masks, or without what."""
    size = SIZES[job.scale]
    torch.manual_seed(job.seed)
    net = network(size, kind)
    _trained_once(job, net, kind, functools.partial(_batch, kind=kind), _denoise, size.steps)
    return net


def simvp(job: Job) -> tuple[SimVP, int]:
    """A SimVP that was trained for as long as one VDT takes on this machine, and its steps.

    Its rate is the one of :data:`RATES` that is best after a quarter of the steps, on further videos of training digits.
    """
    size = SIZES[job.scale]
    torch.manual_seed(job.seed)
    half = size.frames // 2
    net = SimVP(half, size.frames - half)
    rival = _Counted(net)
    name = "SimVP"

    def fit(folder: Path) -> None:
        steps = _steps_of_equal_time(job, size, rival, folder / "steps")
        rival.steps.fill_(steps)
        rate = min(RATES, key=lambda rate: _trial(job, rival, max(1, steps // 4), rate, folder / f"rate {rate:g}"))
        _fit(job, rival, name, _shown, _predict, steps, folder / "model", rate)

    _load_or_train(job, rival, name, fit)
    return net, int(rival.steps)


def watcher(job: Job) -> Watcher:
    """The network whose features Fréchet distances are taken in: one for all seeds."""
    size, once = SIZES[job.scale], dataclasses.replace(job, seed=0)
    torch.manual_seed(0)
    net = Watcher(size.frames)
    _trained_once(once, net, "watcher", _watched, _watch, size.watcher)
    return net


def unseen(job: Job) -> Float[Tensor, "tested frames 1 height width"]:
    """Videos of digits that were not trained on, the same for all models of a seed."""
    size = SIZES[job.scale]
    generator = torch.Generator().manual_seed(UNSEEN + job.seed)
    return videos(digits(job.scale, "test"), size.tested, size.frames, generator).frames.to(job.device)


def generated(
    job: Job, network: VDT, video: Float[Tensor, "batch frames 1 height width"], task: Task
) -> tuple[Float[Tensor, "batch frames 1 height width"], Bool[Tensor, " frames"]]:
    """One sample for each video by DDIM, with the frames that the task gives as they were, and which those are not."""
    size, codec = SIZES[job.scale], latents(job.scale)
    mask = task_mask(task, size.frames, CELLS, CELLS)
    scheduler = DDIMScheduler(
        TIMESTEPS, beta_start=1e-4, beta_end=0.02, prediction_type="sample", timestep_spacing="trailing",
        clip_sample=False,
    )  # fmt: skip
    pipe: Any = VDTPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(UNSEEN * job.seed)
    options = {"num_inference_steps": size.sampling, "generator": generator, "output_type": "latent"}
    parts = [pipe(codec.encode(part.cpu()), mask, **options).frames.cpu() for part in video.split(64)]
    frames = mask[:, 0, 0].to(job.device)
    return torch.where(frames[:, None, None, None], codec.decode(torch.cat(parts)).to(job.device), video), frames


@functools.cache
def latents(scale: Scale) -> Latents:
    """The latents of a scale's digits."""
    return Latents(videos(_source(scale), 200, 4, torch.Generator().manual_seed(0)).frames)


def _shown(job: Job, generator: torch.Generator) -> Float[Tensor, "batch frames 1 32 32"]:
    size = SIZES[job.scale]
    return videos(_source(job.scale), size.batch, size.frames, generator).frames


def _batch(job: Job, generator: torch.Generator, kind: Kind = "unified") -> tuple[Tensor, ...]:
    """Latents, masks, noise and timesteps."""
    size = SIZES[job.scale]
    codes = latents(job.scale).encode(_shown(job, generator))
    if kind == "prediction only":
        mask = task_mask("prediction", size.frames, CELLS, CELLS).expand(size.batch, -1, -1, -1)
    else:
        mask = random_masks(size.batch, size.frames, CELLS, CELLS, generator=generator)
    noise = torch.randn(codes.shape, generator=generator)
    return codes, mask, noise, torch.randint(TIMESTEPS, (size.batch,), generator=generator)


def _watched(job: Job, generator: torch.Generator) -> tuple[Tensor, ...]:
    shown = videos(_source(job.scale), 32, SIZES[job.scale].frames, generator)
    return shown.frames, shown.labels, shown.boxes


@functools.cache
def _source(scale: Scale) -> moving_digits.Digits:
    return digits(scale, "train")


def _denoise(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    shown, mask, noise, timesteps = batch
    table = linear_alphas(TIMESTEPS)
    return masked_diffusion_loss(
        net, shown, mask, noise=noise, timesteps=timesteps, alphas_cumprod=table, prediction="sample"
    ).total.mean()


def _watch(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    watcher: Any = net
    return watcher.loss(*batch)  # type: ignore[no-any-return]


def _predict(net: nn.Module, shown: Tensor) -> Tensor:
    half = shown.shape[1] // 2
    return F.mse_loss(net(shown[:, :half]), shown[:, half:])


class _Counted(nn.Module):
    """A network and the steps it was trained for, which its weights' file keeps."""

    steps: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(*inputs)  # type: ignore[no-any-return]


def _trial(job: Job, rival: nn.Module, steps: int, rate: float, folder: Path) -> float:
    """The error of a copy of the rival after a short training."""
    candidate = copy.deepcopy(rival)
    _fit(job, candidate, f"SimVP, rate {rate:g}", _shown, _predict, steps, folder, rate)
    generator = torch.Generator().manual_seed(UNSEEN + job.seed)
    with torch.no_grad():
        return sum(float(_predict(candidate.eval(), _shown(job, generator).to(job.device))) for _ in range(16))


def _steps_of_equal_time(job: Job, size: Size, rival: nn.Module, file: Path) -> int:
    """How many of the rival's steps take the time of VDT's training; noted, so that a resumed training keeps to it."""

    def step(net: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(net, batch), list(net.parameters()))

    def count() -> float:
        codes, shown = (draw(job, torch.Generator().manual_seed(0)) for draw in (_batch, _shown))
        candidates = {"ours": step(network(size), _denoise, codes), "theirs": step(rival, _predict, shown)}
        times = side_by_side(candidates, rounds=9)
        return size.steps * median(times["ours"]) / median(times["theirs"])

    return noted_steps(file, count)


def _fit(
    job: Job,
    net: nn.Module,
    name: str,
    draw: Callable[[Job, torch.Generator], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    steps: int,
    folder: Path,
    rate: float | None = None,
) -> None:
    """The one recipe, without averaging of weights; ``rate`` is VDT's unless given."""
    train.fit_drawn(
        net,
        loss,
        functools.partial(draw, job),
        steps=steps,
        rate=SIZES[job.scale].rate if rate is None else rate,
        folder=folder,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        label=name,
    )


def _trained_once(
    job: Job,
    net: nn.Module,
    name: str,
    draw: Callable[[Job, torch.Generator], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    steps: int,
) -> None:
    _load_or_train(job, net, name, lambda folder: _fit(job, net, name, draw, loss, steps, folder))


def _load_or_train(job: Job, net: nn.Module, name: str, fit: Callable[[Path], None]) -> None:
    shown = _source(job.scale)
    recipe = {**dataclasses.asdict(SIZES[job.scale]), "name": name, "seed": job.seed, "precision": job.precision}
    code = (model, diffusion, masks, rivals, pipeline, dit, moving_digits, train, sys.modules[__name__])
    load_or_train(net, fit, recipe=recipe, samples=(shown.images, shown.labels), code=code)
    net.to(job.device).eval().requires_grad_(False)
