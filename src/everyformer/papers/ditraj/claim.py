"""The claims of DiTraj: does a digit follow boxes that it was never trained on, and is it still a digit?"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Bool, Float, Int
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan, Scale
from everyformer.lab.generation import judge
from everyformer.lab.moving_digits import DIGIT, SIDE
from everyformer.papers.ditraj import digits
from everyformer.papers.ditraj.boxes import Trajectory
from everyformer.papers.ditraj.control import TrajectoryControl

GUIDANCE = 2.0
INK = 0.1  # brightness (0 to 1) below which a pixel is background
PRESENT = 1.5  # pixels' worth of ink below which a frame shows no digit; the faintest digit has 1.8, most have 15
DITRAJ, NONE = "DiTraj", "no control"
# Prompts split in two, first steps with moved positions (as a share, as the authors': 5 of 50), mask of self-attention.
VARIANTS: dict[str, tuple[bool, float, Any]] = {
    NONE: (False, 0.0, "none"),
    "prompts only": (True, 0.0, "none"),
    "self-attention mask only": (False, 0.0, "separate"),
    "prompts and self-attention mask": (True, 0.0, "separate"),
    "STD-RoPE only": (False, 0.1, "redundant"),
    DITRAJ: (True, 0.1, "redundant"),
}
RIVALS = tuple(VARIANTS)[:4]
SPLIT = 0.6  # share of the steps with two prompts, or with foreground and background apart: the authors' 30 of 50


@dataclasses.dataclass(frozen=True)
class Size:
    """Trajectories, videos for each, and sampling steps."""

    trajectories: int
    videos: int
    steps: int


SIZES: dict[Scale, Size] = {"smoke": Size(1, 2, 10), "cpu": Size(8, 4, 20), "paper": Size(50, 8, 50)}


@dataclasses.dataclass
class Score:
    """How a variant did on all frames of all videos: overlap, distance (pixels) and share recognised."""

    overlap: float
    distance: float
    recognised: float


def held_out(count: int, frames: int, seed: int) -> tuple[list[Trajectory], Float[Tensor, "count frames 2"]]:
    """Trajectories of digits, a keyframe in every frame, and the centres of their boxes in pixels (x, y)."""
    corners = digits.paths(count, frames, torch.Generator().manual_seed(10_000_019 + seed))
    found = []
    for path in corners.tolist():
        keyframes = [
            (frame, y / SIDE, (y + DIGIT) / SIDE, x / SIDE, (x + DIGIT) / SIDE) for frame, (x, y) in enumerate(path)
        ]
        found.append(Trajectory(keyframes, frames=frames))
    return found, corners + DIGIT / 2


@torch.no_grad()
def draw(
    model: digits.CaptionedVideoDiT,
    labels: Int[Tensor, " batch"],
    noise: Float[Tensor, "batch frames 1 16 16"],
    trajectory: Trajectory,
    variant: str,
    steps: int,
) -> Float[Tensor, "batch frames 1 32 32"]:
    """Videos of the digits ``labels`` by diffusers' Euler sampler with guidance, all along one trajectory."""
    split, moved, mask = VARIANTS[variant]
    subject, nothing = (
        model.prompt(digits.captions(labels)),
        model.prompt(digits.NO_CAPTION).expand(len(labels), -1, -1),
    )
    prompts: dict[str, Any] = (
        {"foreground_prompt": subject, "background_prompt": model.prompt(digits.BACKGROUND)} if split else {}
    )
    control = TrajectoryControl(
        trajectory, **prompts, steps=round(SPLIT * steps), rope_steps=round(moved * steps), self_mask=mask
    )
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=digits.SHIFT)
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    video = noise
    with control.on(model.video) as steering:
        for timestep in scheduler.timesteps:
            times = timestep.to(video).expand(len(video))
            wanted = model.video(video, times, subject)
            with steering.unconditional():
                anything = model.video(video, times, nothing)
            video = scheduler.step(anything + GUIDANCE * (wanted - anything), timestep, video).prev_sample
    return digits.enlarged(video.clamp(-1, 1))


def locate(
    video: Float[Tensor, "*batch 1 32 32"],
) -> tuple[Float[Tensor, "*batch 2"], Bool[Tensor, "*batch"]]:
    """The centre (x, y) of brightness in pixels, and whether there is enough to be a digit; else the frame's centre."""
    ink = ((video[..., 0, :, :] + 1) / 2 - INK).clamp(min=0)
    total = ink.sum((-2, -1))
    pixel = torch.arange(SIDE, device=video.device) + 0.5
    centre = torch.stack([(ink.sum(-2) * pixel).sum(-1), (ink.sum(-1) * pixel).sum(-1)], -1)
    there = total >= PRESENT
    return torch.where(there[..., None], centre / total.clamp(min=PRESENT)[..., None], SIDE / 2), there


def overlap(centres: Float[Tensor, "*batch 2"], others: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of two boxes of a digit's size around these centres."""
    shared = (DIGIT - (centres - others).abs()).clamp(min=0).prod(-1)
    return shared / (2 * DIGIT**2 - shared)


def crops(video: Float[Tensor, "count 1 32 32"], centres: Float[Tensor, "count 2"]) -> Float[Tensor, "count 1 16 16"]:
    """What is within a digit's size of the centres, to the nearest pixel; black beyond the frame."""
    padded = F.pad(video[:, 0], (DIGIT,) * 4, value=-1.0)
    first = (centres - DIGIT / 2).round().long() + DIGIT
    x, y = (first[:, axis, None] + torch.arange(DIGIT, device=video.device) for axis in (0, 1))
    rows = torch.arange(len(video), device=video.device)[:, None, None]
    return padded[rows, y[:, :, None], x[:, None, :]][:, None]


def study(job: Job) -> tuple[dict[str, Score], tuple[Panel, ...]]:
    """Every variant on the same trajectories, digits and noise."""
    size, frames = SIZES[job.scale], digits.SIZES[job.scale].frames
    model = digits.trained(job.scale, device=job.device)
    scorer = judge(job.scale, seed=1, device=job.device)
    trajectories, wanted = held_out(size.trajectories, frames, job.seed)
    generator = torch.Generator().manual_seed(20_000_003 + job.seed)
    shape = (size.trajectories, size.videos)
    labels = torch.randint(10, shape, generator=generator).to(job.device)
    noise = torch.randn(*shape, frames, 1, digits.HALF, digits.HALF, generator=generator).to(job.device)
    target = wanted[:, None].expand(-1, size.videos, -1, -1).to(job.device)

    scores, shown = {}, []
    for variant in VARIANTS:
        drawn = torch.stack(
            [
                draw(model, labels[index], noise[index], trajectory, variant, size.steps)
                for index, trajectory in enumerate(trajectories)
            ]
        )
        centres, there = locate(drawn)
        guessed = scorer(crops(drawn.flatten(0, 2), centres.flatten(0, 2))).argmax(-1).view(there.shape)
        scores[variant] = Score(
            overlap=float((overlap(centres, target) * there).mean()),
            distance=float((centres - target).norm(dim=-1).mean()),
            recognised=100 * float(((guessed == labels[..., None]) & there).float().mean()),
        )
        shown.append(outlined(drawn[0, 0], trajectories[0]))
    return scores, panels(scores, torch.cat(shown))


def outlined(video: Float[Tensor, "frames 1 32 32"], trajectory: Trajectory) -> Float[Tensor, "32 width"]:
    """Frames side by side, with the edges of their boxes in grey."""
    video = video[:, 0].cpu().clone()
    for frame, (top, bottom, left, right) in zip(
        video, (trajectory.path() * SIDE).round().long().tolist(), strict=True
    ):
        for line in (frame[top, left:right], frame[bottom - 1, left:right], frame[top:bottom, left],
                     frame[top:bottom, right - 1]):  # fmt: skip
            line.clamp_(min=0.0)
    return torch.cat(list(video), dim=1)


def panels(scores: dict[str, Score], picture: Tensor) -> tuple[Panel, ...]:
    """Bars of every variant, and a video of each."""
    places = [float(index) for index in range(len(scores))]

    def bars(title: str, unit: str, field: str) -> Panel:
        values = [float(getattr(score, field)) for score in scores.values()]
        return Panel(title, "", unit, {"": (places, values)}, kind="bar", ticks=list(scores))

    return (
        bars("Overlap with the boxes", "mIoU", "overlap"),
        bars("Distance from the boxes' centres", "pixels", "distance"),
        bars("Frames whose digit is recognised", "%", "recognised"),
        Panel(f"One video: {', '.join(scores)}", "pixel", "pixel", kind="heat", grid=picture.tolist()),
    )


def extras(scores: dict[str, Score]) -> dict[str, float]:
    """Every figure of a study."""
    found = {f"mIoU, {name}": score.overlap for name, score in scores.items()}
    found |= {f"distance, {name} (pixels)": score.distance for name, score in scores.items()}
    return found | {f"recognised, {name} (%)": score.recognised for name, score in scores.items()}


def control(job: Job) -> Measurement:
    """Overlap, beside the best of what there is without STD-RoPE."""
    scores, shown = study(job)
    return Measurement(scores[DITRAJ].overlap, max(scores[name].overlap for name in RIVALS), extras(scores), shown)


def distance(job: Job) -> Measurement:
    """Distance of the centres, beside no control."""
    scores, shown = study(job)
    return Measurement(scores[DITRAJ].distance, scores[NONE].distance, extras(scores), shown)


def quality(job: Job) -> Measurement:
    """The share of recognised frames that control costs; a model that draws nothing recognisable has lost them all."""
    scores, shown = study(job)
    without = scores[NONE].recognised
    lost = 100 * (1 - scores[DITRAJ].recognised / without) if without else 100.0
    return Measurement(lost, 0.0, extras(scores), shown)


def _plan(claim: str) -> Plan:
    """One sampling step of Wan2.1-1.3B with guidance, under control: 81 frames of 480 x 832 pixels."""
    from diffusers import WanTransformer3DModel

    tokens, words, layers, dim = 21 * 30 * 52, 2 * 512, 30, 1536
    with torch.device("meta"):
        model: Any = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=layers, text_dim=4096, freq_dim=256
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    blocks = sum(parameter.numel() for parameter in model.blocks.parameters())
    one_pass = 2 * blocks * tokens + layers * 4 * tokens * (tokens + words) * dim
    mask_bytes = tokens**2 + tokens * words
    return Plan(
        parameters,
        2.0 * one_pass,
        2 * parameters + mask_bytes + 16 * 2 * tokens * dim,
        f"everyformer run ditraj.{claim} --scale paper --device cuda --precision 32-true",
        "one sampling step of Wan2.1-1.3B with guidance in bf16, 81 frames of 480 x 832, where the authors take 50; the "
        "run here trains a video DiT of 50 million parameters on digits in motion and steers that",
    )


def plan_control() -> Plan:
    """Sampling only: nothing is trained."""
    return _plan("control")


def plan_distance() -> Plan:
    """Sampling only: nothing is trained."""
    return _plan("distance")


def plan_quality() -> Plan:
    """Sampling only: nothing is trained."""
    return _plan("quality")
