"""The claims of PredFormer: errors and speed beside SimVP, and what its arrangements and its gate are worth."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import video_metrics
from everyformer.lab.measure import count_flops, count_parameters, median, side_by_side
from everyformer.papers.predformer import study
from everyformer.papers.predformer.model import (
    ARRANGEMENTS,
    PredFormer,
    predformer_moving_mnist,
    predformer_taxibj,
)  # fmt: skip
from everyformer.papers.predformer.simvp import SimVP
from everyformer.papers.predformer.study import GIVEN, Name, Trained, trained, unseen

Video = Float[Tensor, "batch frames 1 height width"]
COMPARED: tuple[Name, ...] = ("PredFormer", "SimVP v1", "SimVP v2")
# OpenSTL's sizes of SimVP for TaxiBJ: 13.8 million parameters in version 1.
TAXIBJ = {"in_shape": (4, 2, 32, 32), "hidden": 32, "translator": 256, "depth": 8, "scales": 2}


def moving_mnist(job: Job) -> Measurement:
    """By how much less PredFormer errs than a SimVP of as many parameters, trained for the same time."""
    models: dict[str, Trained] = {name: trained(job, name) for name in COMPARED}
    truth, known = unseen(job), unseen(job, "train")
    later = truth[:, GIVEN:]
    made = {name: found.predict(truth) for name, found in models.items()}
    simple = {"nothing": torch.zeros_like(later), "last frame": truth[:, GIVEN - 1 : GIVEN].expand_as(later)}
    extras: dict[str, float] = {}
    for name, video in {**made, **simple}.items():
        found = video_metrics.video(video, later)
        usual = video_metrics.video(video, later, ["ssim"], data_range=video_metrics.LITERATURE_RANGE)
        extras |= {f"MSE, {name}": found["mse"], f"MAE, {name}": found["mae"], f"PSNR (dB), {name}": found["psnr"],
                   f"SSIM of range 1, {name}": found["ssim"], f"SSIM of range 2, {name}": usual["ssim"]}  # fmt: skip
    for name, model in models.items():
        on_known = video_metrics.video(model.predict(known), known[:, GIVEN:], ["mse"])["mse"]
        extras |= {
            f"MSE on new sequences of training digits, {name}": on_known,
            f"parameters, {name}": float(count_parameters(model.network)),
            f"steps, {name}": float(model.steps),
            f"rate, {name}": float(model.rate),
            f"seconds of training, {name}": float(model.seconds),
        }
    panels = (_progress(models), _ahead(made, later), study.strip({"truth": later, **made}))
    return Measurement(100 * (1 - extras["MSE, PredFormer"] / extras["MSE, SimVP v1"]), 0.0, extras, panels)


def arrangements(job: Job) -> Measurement:
    """Error of the interleaved TSST and of the better factorised arrangement, of the same blocks and steps."""
    models = {_label(name): study.arranged_and_trained(job, name) for name in ARRANGEMENTS}
    models["Fac-S-T as published"] = study.arranged_and_trained(job, "fac_st", reorder=False)
    truth = unseen(job)
    made = {name: model.predict(truth) for name, model in models.items()}
    errors = _errors(made, truth)
    ranked = dict(sorted(errors.items(), key=lambda item: item[1]))
    extras = {f"MSE, {name}": value for name, value in errors.items()}
    extras |= {f"parameters, {name}": float(count_parameters(model.network)) for name, model in models.items()}
    bars = ([float(place) for place in range(len(ranked))], list(ranked.values()))
    shown = {name: models[name] for name in ("TSST", "Full", "Fac-T-S", "Fac-S-T", "Fac-S-T as published")}
    strip = study.strip({"truth": truth[:, GIVEN:], "TSST": made["TSST"], "Fac-T-S": made["Fac-T-S"]})
    panels = (
        Panel("Arrangements", "", "MSE", {"": bars}, kind="bar", ticks=list(ranked)),
        _progress(shown, steps=True),
        strip,
    )
    return Measurement(errors["TSST"], min(errors["Fac-T-S"], errors["Fac-S-T"]), extras, panels)


def swiglu(job: Job) -> Measurement:
    """Error with SwiGLU, and with MLPs of as many parameters after as many steps."""
    models = {"SwiGLU": trained(job, "PredFormer"), "MLP": trained(job, "PredFormer with an MLP")}
    truth = unseen(job)
    made = {name: model.predict(truth) for name, model in models.items()}
    errors = _errors(made, truth)
    extras = {f"parameters, {name}": float(count_parameters(model.network)) for name, model in models.items()}
    extras |= {f"seconds of training, {name}": float(model.seconds) for name, model in models.items()}
    panels = (_progress(models, steps=True), study.strip({"truth": truth[:, GIVEN:], **made}))
    return Measurement(errors["SwiGLU"], errors["MLP"], extras, panels)


def speed(job: Job) -> Measurement:
    """Predicted frames a second of networks of as many parameters; and of the published sizes, which are not equal."""
    torch.manual_seed(job.seed)
    size = study.SIZES[job.scale]
    networks: dict[str, nn.Module] = {name: study.network(job.scale, name) for name in COMPARED}
    # The published SimVP has translators eight times as wide as a frame's features; of few parameters that is narrow.
    narrow = {**size.networks["SimVP v1"], "hidden": size.networks["SimVP v1"]["hidden"] // 2}
    networks["SimVP v1 of half the features"] = SimVP((GIVEN, 1, size.side, size.side), **narrow)
    rounds = 2 if job.scale == "smoke" else 9
    extras: dict[str, float] = {}
    rates: dict[str, dict[str, float]] = {
        "predicting": _frame_rates(job, networks, size.batch, rounds),
        "training": _frame_rates(job, networks, size.batch, rounds, training=True),
    }
    if job.scale != "smoke":
        published: dict[str, nn.Module] = {"PredFormer": predformer_moving_mnist(), "SimVP v1": SimVP(),
                                           "SimVP v2": SimVP(version=2)}  # fmt: skip
        rates["published sizes, predicting"] = _frame_rates(job, published, 1, 3)
    for doing, found in rates.items():
        extras |= {f"frames/s {doing}, {name}": rate for name, rate in found.items()}
    for name, network in networks.items():
        extras |= {f"parameters, {name}": float(count_parameters(network)), f"MMAC, {name}": _mmac(network)}
    panels = [_bars(f"Frames a second, {doing}", "frames/s", found) for doing, found in rates.items()]
    return Measurement(rates["predicting"]["PredFormer"], rates["predicting"]["SimVP v1"], extras, tuple(panels))


def taxibj_speed(job: Job) -> Measurement:
    """Predicted maps a second of the published sizes for TaxiBJ, on maps of noise."""
    torch.manual_seed(job.seed)
    networks: dict[str, nn.Module] = {
        "Binary-ST": predformer_taxibj("st"),
        "Triplet-STS": predformer_taxibj("sts"),
        "SimVP v1": SimVP(**TAXIBJ),  # type: ignore[arg-type]
        "SimVP v2": SimVP(version=2, **TAXIBJ),  # type: ignore[arg-type]
    }
    batch, rounds = (1, 1) if job.scale == "smoke" else (4, 7) if job.scale == "cpu" else (64, 20)
    rates = _frame_rates(job, networks, batch, rounds)
    extras = {f"frames/s, {name}": rate for name, rate in rates.items()}
    for name, network in networks.items():
        extras |= {f"parameters, {name}": float(count_parameters(network)), f"MMAC, {name}": _mmac(network)}
    panels = (_bars("Frames a second", "frames/s", rates),
              _bars("Parameters", "millions", {name: count_parameters(net) / 1e6 for name, net in networks.items()}),
              _bars("Multiplications", "millions", {name: _mmac(net) for name, net in networks.items()}))  # fmt: skip
    return Measurement(rates["Binary-ST"], rates["SimVP v1"], extras, panels)


def _label(name: str) -> str:
    return {"full": "Full", "fac_st": "Fac-S-T", "fac_ts": "Fac-T-S"}.get(name, name.upper())


def _errors(made: Mapping[str, Video], truth: Video) -> dict[str, float]:
    return {name: video_metrics.video(video, truth[:, GIVEN:], ["mse"])["mse"] for name, video in made.items()}


def _progress(models: Mapping[str, Trained], *, steps: bool = False) -> Panel:
    """Error over the seconds of a training, or over its steps where all models have as many."""
    lines = {name: model.curve() for name, model in models.items()}
    if steps:
        share = [place / study.POINTS for place in range(1, study.POINTS + 1)]
        lines = {name: ([x * float(models[name].steps) for x in share], errors) for name, (_, errors) in lines.items()}
    what = "steps" if steps else "seconds of training"
    return Panel("Error on new sequences of training digits", what, "MSE", lines)


def _ahead(made: Mapping[str, Video], later: Video) -> Panel:
    frames = [float(frame) for frame in range(1, GIVEN + 1)]
    lines = {name: (frames, (video - later).square().sum((2, 3, 4)).mean(0).tolist()) for name, video in made.items()}
    return Panel("Error", "frames ahead", "MSE", lines)


def _bars(title: str, label: str, values: Mapping[str, float]) -> Panel:
    places = [float(index) for index in range(len(values))]
    return Panel(title, "", label, {"": (places, list(values.values()))}, kind="bar", ticks=list(values))


def _frame_rates(
    job: Job, networks: Mapping[str, nn.Module], batch: int, rounds: int, *, training: bool = False
) -> dict[str, float]:
    """Predicted frames a second, of the forward pass or of forward and backward pass, timed in turn."""

    def once(network: nn.Module, video: Tensor) -> Callable[[], object]:
        if training:
            return lambda: torch.autograd.grad(network(video).square().mean(), list(network.parameters()))
        return torch.inference_mode()(functools.partial(network, video))

    candidates, frames = {}, {}
    for name, network in networks.items():
        shape: tuple[int, ...] = network.in_shape  # type: ignore[assignment]
        frames[name] = batch * shape[0]
        candidates[name] = once(network.to(job.device).train(training), torch.rand(batch, *shape, device=job.device))
    times = side_by_side(candidates, rounds, device=job.device)
    return {name: frames[name] / median(found) for name, found in times.items()}


def _mmac(network: nn.Module) -> float:
    """Millions of multiplications and additions of one sequence's forward pass, attention included."""
    own: tuple[int, ...] = network.in_shape  # type: ignore[assignment]
    twin = copy.deepcopy(network).to("meta").eval()
    return count_flops(lambda: twin(torch.zeros(1, *own, device="meta"))) / 2e6


def plan() -> Plan:
    """One training step of the published size for Moving MNIST."""
    with torch.device("meta"):
        model, video = predformer_moving_mnist(), torch.zeros(1, 10, 1, 64, 64)
    batch = 16
    flops = count_flops(lambda: model(video).sum().backward())
    return _plan(model, float(flops * batch), batch, "one step at batch 16 of ten frames of 64 x 64, of 1.25 million")


def taxibj_plan() -> Plan:
    """One training step of the published size for TaxiBJ."""
    with torch.device("meta"):
        model, maps = predformer_taxibj(), torch.zeros(1, 4, 2, 32, 32)
    batch = 16
    flops = count_flops(lambda: model(maps).sum().backward())
    return _plan(
        model, float(flops * batch), batch, "one step at batch 16 of four maps; the claim times forward passes"
    )


def _plan(model: PredFormer, flops: float, batch: int, notes: str) -> Plan:
    parameters = count_parameters(model)
    tokens = model.positions[..., 0].numel()
    blocks, dim = len(model.stages) * len(model.stages[0].blocks), model.embed.out_features  # type: ignore[arg-type]
    activations = 4 * batch * tokens * dim * 20 * blocks  # float32: norms, q, k, v, gates and values of a block
    launch = "everyformer run predformer --scale paper --device cuda"
    return Plan(parameters, flops, 16.0 * parameters + activations, launch, notes)
