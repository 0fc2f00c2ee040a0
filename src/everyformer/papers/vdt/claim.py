"""The claims of VDT on digits in motion: one model for all masks, and what its attention over time is worth."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import count_flops
from everyformer.lab.quality import frechet_distance, likeness
from everyformer.papers.vdt.model import vdt_l_2
from everyformer.papers.vdt.study import generated, simvp, unseen, vdt, watcher

Video = Float[Tensor, "batch frames 1 height width"]


def ucf101(job: Job) -> Measurement:
    """Fréchet distance of videos made of nothing to real ones, beside frames that do not see one another."""
    truth = unseen(job)
    made = {
        "VDT": generated(job, vdt(job, "unified"), truth, "unconditional")[0],
        "without temporal attention": generated(job, vdt(job, "without temporal attention"), truth, "unconditional")[0],
    }
    distances = _distances(job, truth, made)
    return Measurement(
        distances["VDT"],
        distances["without temporal attention"],
        {f"Fréchet distance, {name}": value for name, value in distances.items()},
        (_bars("Distance to real videos", "Fréchet distance", distances), _pictures({"real": truth, **made})),
    )


def cityscapes(job: Job) -> Measurement:
    """Fréchet distance of continued videos to the real ones, beside a SimVP of the same time of training."""
    truth = unseen(job)
    made = _predictions(job, truth)
    distances = _distances(job, truth, made)
    scores = _scores(truth, made, slice(truth.shape[1] // 2, None))
    extras = {f"Fréchet distance, {name}": value for name, value in distances.items()} | _likenesses(scores)
    panels = (_bars("Distance to real videos", "Fréchet distance", distances), _pictures({"real": truth, **made}))
    return Measurement(distances["VDT"], distances["SimVP"], extras | _steps(job), panels)


def prediction(job: Job) -> Measurement:
    """Error of the second half of a video, beside its last given frame kept, and a SimVP of the same time of training."""
    truth = unseen(job)
    made, half = _predictions(job, truth), truth.shape[1] // 2
    scores = _scores(truth, made, slice(half, None))
    ahead = [float(frame - half + 1) for frame in range(half, truth.shape[1])]
    curves = {
        name: (ahead, [likeness(video[:, at], truth[:, at])["mse"] for at in range(half, truth.shape[1])])
        for name, video in made.items()
    }
    panels = (Panel("Error", "frames ahead", "MSE", curves), _pictures({"real": truth, **made}))
    return Measurement(scores["VDT"]["mse"], scores["copy"]["mse"], _likenesses(scores) | _steps(job), panels)


def interpolation(job: Job) -> Measurement:
    """Error of three frames between given ones, beside the nearer given frame and a blend of the two."""
    truth = unseen(job)
    video, hidden = generated(job, vdt(job, "unified"), truth, "interpolation")
    between, simple = _between(truth, hidden)
    made = {"VDT": video, **simple}
    scores = _scores(truth, made, between)
    best = min(scores[name]["mse"] for name in simple)
    return Measurement(scores["VDT"]["mse"], best, _likenesses(scores), (_pictures({"real": truth, **made}),))


def temporal(job: Job) -> Measurement:
    """Error of the change from frame to frame in prediction, with attention over time and without."""
    truth = unseen(job)
    made = {
        "VDT": generated(job, vdt(job, "unified"), truth, "prediction")[0],
        "without temporal attention": generated(job, vdt(job, "without temporal attention"), truth, "prediction")[0],
    }
    half = truth.shape[1] // 2

    def changes(video: Video) -> Video:
        return video[:, half - 1 :].diff(dim=1) / 2  # of values scaled to [0, 1]

    errors = {name: float((changes(video) - changes(truth)).square().mean()) for name, video in made.items()}
    extras = _likenesses(_scores(truth, made, slice(half, None)))
    extras |= {f"change from frame to frame, {name}": float(changes(video).square().mean())
               for name, video in {"real": truth, **made}.items()}  # fmt: skip
    panels = (_bars("Error of changes", "MSE", errors), _pictures({"real": truth, **made}))
    return Measurement(errors["VDT"], errors["without temporal attention"], extras, panels)


def unified(job: Job) -> Measurement:
    """By how much the model of all masks misses more than one that has only learned to predict."""
    truth = unseen(job)
    made = {
        "VDT": generated(job, vdt(job, "unified"), truth, "prediction")[0],
        "prediction only": generated(job, vdt(job, "prediction only"), truth, "prediction")[0],
    }
    scores = _scores(truth, made, slice(truth.shape[1] // 2, None))
    excess = 100 * (scores["VDT"]["mse"] / scores["prediction only"]["mse"] - 1)
    return Measurement(excess, 0.0, _likenesses(scores), (_pictures({"real": truth, **made}),))


def _predictions(job: Job, truth: Video) -> dict[str, Video]:
    """Whole videos: the first half given, the second half as VDT, SimVP and a copy of the last given frame have it."""
    half = truth.shape[1] // 2
    network, _ = simvp(job)
    with torch.no_grad():
        later = torch.cat([network(part).clamp(-1, 1) for part in truth[:, :half].split(64)])
    kept = truth[:, half - 1 : half].expand(-1, truth.shape[1] - half, -1, -1, -1)
    return {
        "VDT": generated(job, vdt(job, "unified"), truth, "prediction")[0],
        "SimVP": torch.cat([truth[:, :half], later], 1),
        "copy": torch.cat([truth[:, :half], kept], 1),
    }


def _between(truth: Video, generated_frames: Tensor) -> tuple[list[int], dict[str, Video]]:
    """The frames that have a given one before and after, and videos with the nearer one or a blend in their place."""
    given = (~generated_frames).nonzero()[:, 0].tolist()
    frames: list[int] = []
    copied, blended = truth.clone(), truth.clone()
    for before, after in itertools.pairwise(given):
        for frame in range(before + 1, after):
            share = (frame - before) / (after - before)
            copied[:, frame] = truth[:, before if share <= 0.5 else after]
            blended[:, frame] = torch.lerp(truth[:, before], truth[:, after], share)
            frames.append(frame)
    return frames, {"copy": copied, "linear blend": blended}


def _scores(truth: Video, made: dict[str, Video], frames: slice | list[int]) -> dict[str, dict[str, float]]:
    return {name: likeness(video[:, frames], truth[:, frames]) for name, video in made.items()}


def _likenesses(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    units = {"mse": "MSE", "psnr": "PSNR (dB)", "ssim": "SSIM"}
    return {f"{units[kind]}, {name}": value for name, found in scores.items() for kind, value in found.items()}


def _steps(job: Job) -> dict[str, float]:
    return {"steps of SimVP in the time of VDT's training": float(simvp(job)[1])}


def _distances(job: Job, truth: Video, made: dict[str, Video]) -> dict[str, float]:
    """Fréchet distances to the real videos; the last is that of their two halves, the least that can be hoped for."""
    net = watcher(job)
    with torch.no_grad():
        real, features = net.features(truth), {name: net.features(video) for name, video in made.items()}
    found = {name: frechet_distance(values, real) for name, values in features.items()}
    return {**found, "two sets of real videos": frechet_distance(real[::2], real[1::2])}


def _bars(title: str, label: str, values: dict[str, float]) -> Panel:
    places = [float(index) for index in range(len(values))]
    return Panel(title, "", label, {"": (places, list(values.values()))}, kind="bar", ticks=list(values))


def _pictures(videos: dict[str, Video]) -> Panel:
    """The first video of each, one below the other, frames from left to right."""
    rows = [torch.cat(list(video[0, :, 0].cpu()), dim=1) for video in videos.values()]
    return Panel(f"Frames: {', '.join(videos)}", "pixel", "pixel", kind="heat", grid=torch.cat(rows).tolist())


def plan() -> Plan:
    """One training step of VDT-L/2 on latents of 256 x 256 pixels."""
    with torch.device("meta"):
        model, video, times = vdt_l_2(classes=1), torch.zeros(1, 16, 4, 32, 32), torch.zeros(1)
    flops = count_flops(lambda: model(video, times).sum().backward())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batch, tokens = 64, 16 * 256
    activations = 2 * batch * tokens * 1152 * 34 * 28
    return Plan(
        parameters,
        float(flops * batch),
        16.0 * parameters + activations,
        "everyformer run vdt --scale paper --device cuda --precision bf16-mixed",
        "one step at batch 64 (not stated in the code) of 16 frames of 32 x 32 latents, bf16 activations; --scale paper "
        "here trains VDT-S on 16 frames of 32 x 32 pixels of digits in motion: no video set is read",
    )
