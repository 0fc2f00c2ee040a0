"""The claims of region-adaptive sampling: how much faster it is, and what the pictures are worth at equal time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan, Scale
from everyformer.lab.measure import count_flops, median, side_by_side
from everyformer.papers.ras import miniature
from everyformer.papers.ras.method import Schedule, draw_updates
from everyformer.papers.ras.miniature import Size
from everyformer.papers.ras.pipelines import accelerate
from everyformer.parts.dit import DiT

SMOKE = Size(side=16, dim=32, depth=2, heads=2)
SMALL = Size(side=64, dim=128, depth=4, heads=4)
SD3_SIZES: dict[Scale, Size] = {"smoke": SMOKE, "cpu": SMALL, "paper": miniature.SD3_MEDIUM}
LUMINA_SIZES: dict[Scale, Size] = {"smoke": SMOKE, "cpu": SMALL, "paper": miniature.LUMINA_NEXT}
# Steps and reset steps of the authors' scripts; the ratio is the smallest that the paper uses.
SD3_STEPS, SD3_SCHEDULE = 28, Schedule(0.125, 4, (12, 20))
LUMINA_STEPS, LUMINA_SCHEDULE = 30, Schedule(0.125, 4, (12, 22))
RATIOS, TOKEN_STEPS, DENSE_STEPS = (0.5, 0.25), 20, 4
DIT_SIZES: dict[Scale, dict[str, Any]] = {
    "smoke": {"dim": 32, "depth": 1, "heads": 1},
    "cpu": {"dim": 128, "depth": 4, "heads": 4},
    "paper": {"dim": 1152, "depth": 28, "heads": 16},
}


def sd3(job: Job) -> Measurement:
    """Dense against region-adaptive sampling of a Stable Diffusion 3 pipeline."""
    return _speed(job, miniature.sd3, SD3_SIZES[job.scale], SD3_SCHEDULE, SD3_STEPS)


def lumina(job: Job) -> Measurement:
    """Dense against region-adaptive sampling of a Lumina-Next pipeline."""
    return _speed(job, miniature.lumina, LUMINA_SIZES[job.scale], LUMINA_SCHEDULE, LUMINA_STEPS)


def _speed(job: Job, make: Callable[[Size, int], Any], size: Size, schedule: Schedule, steps: int) -> Measurement:
    pipe = make(size, job.seed).to(job.device)
    draw = miniature.drawer(pipe, size, steps=steps, seed=job.seed)
    maps: list[Tensor] = []

    def adaptive() -> None:
        with _within(pipe, schedule) as sampling:
            draw()
        maps[:] = sampling.updates

    rounds = 1 if job.scale == "smoke" else 3
    times = side_by_side({"region-adaptive": adaptive, "dense": draw}, rounds=rounds, device=job.device)
    seconds = {name: median(values) for name, values in times.items()}
    ratio, bound = seconds["dense"] / seconds["region-adaptive"], schedule.bound(steps)
    extras = {f"seconds, {name}": value for name, value in seconds.items()}
    extras |= {"token bound": bound, "share of the token bound": ratio / bound}
    panels = (
        Panel("Speed-up", "", "x", {"": ([0.0, 1.0], [ratio, bound])}, kind="bar", ticks=["measured", "token bound"]),
        Panel("Tokens that run at steps 4 to 13 (bright)", "token", "token", kind="heat",
              grid=draw_updates(maps[4:14]).tolist()),
    )  # fmt: skip
    return Measurement(ratio, 1.0, extras, panels)


def _within(model: Any, schedule: Schedule, scheduler: Any = None) -> Any:
    return accelerate(
        model,
        sample_ratio=schedule.sample_ratio,
        dense_steps=schedule.dense_steps,
        reset_steps=schedule.reset_steps,
        scheduler=scheduler,
    )


def dit_candidates(
    size: dict[str, Any], steps: int, seed: int, device: str
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Functions that sample a DiT of 1,024 tokens densely and at each ratio, and the token bounds of the latter."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(seed)
    model = miniature.lively(DiT(image_size=32, patch=1, channels=4, **size)).to(device)
    scheduler = FlowMatchEulerDiscreteScheduler()
    noise = torch.randn(1, 4, 32, 32).to(device)

    def dense() -> Tensor:
        return miniature.follow(model, scheduler, noise, None, steps)

    def adaptive(schedule: Schedule) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with _within(model, schedule, scheduler):
                return dense()

        return run

    schedules = {f"ratio {ratio}": Schedule(ratio, DENSE_STEPS) for ratio in RATIOS}
    candidates = {"dense": dense} | {name: adaptive(schedule) for name, schedule in schedules.items()}
    return candidates, {name: schedule.bound(steps) for name, schedule in schedules.items()}


def tokens(job: Job) -> Measurement:
    """Wall time at ratios 0.5 and 0.25 beside dense sampling, as a share of what the tokens allow."""
    steps = 8 if job.scale == "smoke" else TOKEN_STEPS
    candidates, bounds = dit_candidates(DIT_SIZES[job.scale], steps, job.seed, job.device)
    times = side_by_side(candidates, rounds=3 if job.scale == "smoke" else 7, device=job.device)
    seconds = {name: median(values) for name, values in times.items()}
    ups = {name: seconds["dense"] / seconds[name] for name in bounds}
    shares = {name: ups[name] / bounds[name] for name in bounds}
    extras = {f"seconds, {name}": value for name, value in seconds.items()}
    extras |= {f"speed-up, {name}": value for name, value in ups.items()}
    extras |= {f"token bound, {name}": value for name, value in bounds.items()}
    extras |= {f"share of the bound, {name}": value for name, value in shares.items()}
    panel = Panel(
        "Speed-up against the share of tokens that run", "sample ratio", "x",
        {"measured": ([1.0, *RATIOS], [1.0, *ups.values()]), "token bound": ([1.0, *RATIOS], [1.0, *bounds.values()])},
    )  # fmt: skip
    return Measurement(min(shares.values()), 1.0, extras, (panel,))


def quality(job: Job) -> Measurement:
    """See :mod:`.quality`."""
    from everyformer.papers.ras import quality as study

    return study.run(job)


def plan_sd3() -> Plan:
    """One dense sampling of Stable Diffusion 3 medium at 1024 pixels, with guidance."""
    size = miniature.SD3_MEDIUM
    with torch.device("meta"):
        model = miniature.sd3_transformer(size)
        words = torch.zeros(2, size.text, size.text_dim), torch.zeros(2, size.text_dim // 2)
        flops = count_flops(lambda: model(torch.zeros(2, 16, size.side, size.side), *words, torch.zeros(2)))
    return _plan("sd3", model, size, flops, SD3_STEPS, SD3_SCHEDULE)


def plan_lumina() -> Plan:
    """One dense sampling of Lumina-Next at 1024 pixels, with guidance."""
    size = miniature.LUMINA_NEXT
    with torch.device("meta"):
        model = miniature.lumina_transformer(size)
        words, kept = torch.zeros(2, size.text, size.text_dim), torch.ones(2, size.text)
        places = torch.zeros(384, 384, size.dim // size.heads // 2, dtype=torch.complex64)
        flops = count_flops(
            lambda: model(
                torch.zeros(2, 4, size.side, size.side), torch.zeros(2), words, kept, places, cross_attention_kwargs={}
            )
        )
    return _plan("lumina", model, size, flops, LUMINA_STEPS, LUMINA_SCHEDULE)


def _plan(claim: str, model: Any, size: Size, flops: float, steps: int, schedule: Schedule) -> Plan:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cached = 2 * size.depth * 2 * (size.side // 2) ** 2 * size.dim * 4  # keys and values, two branches, float32
    notes = (
        f"FLOPs of one dense sampling of {steps} steps; by tokens, region-adaptive sampling takes 1 in "
        f"{schedule.bound(steps):.2f} of them; memory of weights and cached keys and values in float32"
    )
    launch = f"everyformer run ras.{claim} --scale paper --device cuda"
    return Plan(parameters, float(steps * flops), 4 * parameters + cached, launch, notes)


def plan_tokens() -> Plan:
    """One dense sampling of a DiT-XL with 1,024 tokens."""
    with torch.device("meta"):
        model = DiT(image_size=32, patch=1, channels=4, **DIT_SIZES["paper"])
    return _plan_dit("tokens", model, TOKEN_STEPS, 1, 4, f"one dense sampling of {TOKEN_STEPS} steps")


def plan_quality() -> Plan:
    """One training step of the largest DiT of digits."""
    from everyformer.papers.ras.digits import PATCH, SIDE, SIZES

    size = SIZES["paper"]
    with torch.device("meta"):
        model = DiT(
            image_size=SIDE, patch=PATCH, channels=1, dim=size.dim, depth=size.depth, heads=size.heads, classes=10
        )
    # A forward and a backward pass, which costs two; weights, gradients and Adam's two averages.
    return _plan_dit("quality", model, 3, size.batch, 16, f"one training step at batch {size.batch}")


def _plan_dit(claim: str, model: DiT, passes: int, batch: int, bytes_each: int, notes: str) -> Plan:
    shape = (1, model.channels, model.image_size, model.image_size)
    with torch.no_grad():
        flops = count_flops(lambda: model(torch.zeros(shape, device="meta"), torch.zeros(1, device="meta")))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = model.embed.out_features * (model.image_size // model.patch) ** 2
    kept = len(model.blocks) if bytes_each > 4 else 1  # blocks whose activations a backward pass waits for
    memory = bytes_each * parameters + 4 * 16 * batch * width * kept
    launch = f"everyformer run ras.{claim} --scale paper --device cuda"
    return Plan(parameters, float(passes * batch * flops), memory, launch, notes)
