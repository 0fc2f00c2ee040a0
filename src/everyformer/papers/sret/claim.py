"""The claims of SReT: recursion at equal parameters, what slicing saves and costs, and a hundred shared layers.

All networks are trained by ``lab.images.train_classifier``: same pictures, same recipe.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import data, images
from everyformer.lab.measure import count_flops, count_parameters, median, side_by_side
from everyformer.lab.train import History
from everyformer.papers.sret.model import SReT, create

# A small SReT for 32 pixels: the stem's last stride is 1, so that the first stage has 64 tokens to slice.
SMALL: dict[str, Any] = {
    "img_size": 32,
    "num_classes": 10,
    "base_dim": 16,
    "heads": (1, 2, 4),
    "blocks": (1, 3, 2),
    "depths": (2, 6, 4),
    "stem_strides": (2, 2, 1),
}
DEEP: dict[str, Any] = {
    **SMALL,
    "blocks": (2, 5, 3),
    "depths": (20, 50, 30),
    "stem_strides": (2, 2, 2),
    "groups": None,
}
TEST = 3000


def pictures(job: Job) -> images.Pictures:
    """What all networks of a job see: digits at smoke scale, 4,096 CIFAR-10 pictures, or all of CIFAR-10."""
    if job.scale == "smoke":
        digits, labels = data.digits("mnist_500")
        padded = F.pad(digits, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1).contiguous()
        return images.Pictures((padded[:400], labels[:400]), (padded[400:], labels[400:]))
    if job.scale == "cpu":
        return images.cifar10().first(4096, TEST)
    return images.cifar10(full=True)


def epochs(job: Job, cpu: int) -> int:
    """One epoch at smoke scale, ``cpu`` there, and the paper's 300."""
    return {"smoke": 1, "cpu": cpu, "paper": 300}[job.scale]


def multiply_adds(name: str | None = None, size: int = 32, **options: Any) -> int:
    """Of one picture. Counted without data, where attention is made of plain products and all of them are seen."""
    with torch.device("meta"):
        model = create(name, **options) if name else SReT(**options)
    return images.macs(model, size)


def build(job: Job, options: dict[str, Any]) -> SReT:
    """A network whose first weights depend on the job's seed alone."""
    torch.manual_seed(job.seed)
    return SReT(**options)


def widened(options: dict[str, Any], target: int) -> dict[str, Any]:
    """``options`` made wider to ``target`` parameters: the width as far as it goes, the rest in the feed-forwards."""

    def size(changes: dict[str, Any]) -> int:
        with torch.device("meta"):
            return count_parameters(SReT(**{**options, **changes}))

    base = options["base_dim"]
    width = max(width for width in range(base, 2 * base + 1, 2) if size({"base_dim": width}) <= target)
    ratios = [3.6 + step / 40 for step in range(80)]
    ratio = min(ratios, key=lambda ratio: abs(size({"base_dim": width, "mlp_ratio": ratio}) - target))
    return {**options, "base_dim": width, "mlp_ratio": ratio}


def tiny(job: Job) -> Measurement:
    """Blocks applied twice beside blocks applied once, as many parameters; also without projections, and longer."""
    shown, budget = pictures(job), epochs(job, 7)
    recursive = {**SMALL, "groups": None}
    target = count_parameters(build(job, recursive))
    once = widened({**recursive, "depths": SMALL["blocks"], "projection": False}, target)
    bare = widened({**recursive, "projection": False}, target)
    longer = round(budget * multiply_adds(**recursive) / multiply_adds(**once))
    runs = {
        "recursive": (recursive, budget),
        "without recursion": (once, budget),
        "recursive without projections": (bare, budget),
        "without recursion, same computation": (once, longer),
    }
    found, curves, extras = {}, {}, {}
    for name, (options, length) in runs.items():
        found[name], history = _train(job, options, shown, name, length)
        curves[name] = history
        extras[f"parameters, {name}"] = float(count_parameters(build(job, options)))
        extras[f"training seconds, {name}"] = history.seconds
    extras |= {f"accuracy, {name}": found[name] for name in list(runs)[2:]}
    extras["epochs for the same computation"] = float(longer)
    return Measurement(found["recursive"], found["without recursion"], extras, (_losses(curves), _bars(found)))


def slicing(job: Job) -> Measurement:
    """The same weights to begin with, attention sliced or whole; the metric is the difference of their accuracies."""
    shown, budget = pictures(job), epochs(job, 12)
    whole, whole_history = _train(job, {**SMALL, "groups": None}, shown, "whole", budget)
    sliced, sliced_history = _train(job, SMALL, shown, "sliced", budget)
    extras = {
        "accuracy, sliced": sliced,
        "accuracy, whole": whole,
        "multiply-adds, sliced": float(multiply_adds(**SMALL)),
        "multiply-adds, whole": float(multiply_adds(**{**SMALL, "groups": None})),
        "training seconds, sliced": sliced_history.seconds,
        "training seconds, whole": whole_history.seconds,
    }
    panels = (_losses({"sliced": sliced_history, "whole": whole_history}), _bars({"sliced": sliced, "whole": whole}))
    return Measurement(whole - sliced, 0.0, extras, panels)


def cost(job: Job) -> Measurement:
    """SReT_T at 224 pixels: multiply-adds counted, and the time of one forward pass beside them."""
    counted = {name: multiply_adds(name, 224) / 1e9 for name in ("sret_t", "sret_t_unsliced")}
    batch, rounds = (1, 1) if job.scale == "smoke" else (8, 7)
    networks = {name: create(name).eval().to(job.device) for name in counted}
    picture = torch.randn(batch, 3, 224, 224, device=job.device)
    with torch.no_grad():
        times = side_by_side(
            {name: lambda network=network: network(picture) for name, network in networks.items()},  # type: ignore[misc]
            rounds=rounds,
            device=job.device,
        )
    seconds = {name: median(values) for name, values in times.items()}
    extras = {f"milliseconds per picture, {name}": 1000 * value / batch for name, value in seconds.items()}
    extras["time whole / sliced"] = seconds["sret_t_unsliced"] / seconds["sret_t"]
    return Measurement(counted["sret_t"], counted["sret_t_unsliced"], extras, (_bars(counted, "multiply-adds in G"),))


def depth(job: Job) -> Measurement:
    """A hundred applications of ten blocks, with and without learned residual coefficients."""
    shown, budget = pictures(job), epochs(job, 6)
    deep = {**DEEP, "depths": (4, 10, 6)} if job.scale == "smoke" else DEEP
    found, curves = {}, {}
    for name, coefficients in (("with coefficients", True), ("without", False)):
        options = {**deep, "coefficients": coefficients}
        found[name], curves[name] = _train(job, options, shown, name, budget)
    extras = {f"last training loss, {name}": history.train[-1] for name, history in curves.items()}
    extras["applications"] = float(sum(deep["depths"]))
    extras["parameters"] = float(count_parameters(build(job, deep)))
    return Measurement(found["with coefficients"], found["without"], extras, (_losses(curves), _bars(found)))


def plan_tiny() -> Plan:
    """SReT_T on ImageNet, DeiT's recipe."""
    return _plan(create("sret_t"), 4, "sret.tiny")


def plan_cost() -> Plan:
    """SReT_T, counted and timed; nothing is trained."""
    launch = "everyformer run sret.cost --scale paper --device cuda"
    return dataclasses.replace(
        plan_tiny(), launch=launch, notes="one step at batch 1024, though the claim trains nothing"
    )


def plan_slicing() -> Plan:
    """SReT_S on ImageNet, DeiT's recipe."""
    return _plan(create("sret_s"), 2, "sret.slicing")


def plan_depth() -> Plan:
    """SReT_T's sizes with ten applications of each block: our choice, the paper's is not published."""
    return _plan(create("sret_t", depths=(20, 50, 30), groups=None), 2, "sret.depth")


def _train(job: Job, options: dict[str, Any], shown: images.Pictures, name: str, length: int) -> tuple[float, History]:
    folder = name.replace(" ", "_").replace(",", "")
    return images.train_classifier(build(job, options), shown, job, name=folder, epochs=length)


def _losses(curves: dict[str, History]) -> Panel:
    lines = {name: ([i + 1.0 for i in range(len(run.train))], run.train) for name, run in curves.items()}
    return Panel("Training loss", "epoch", "cross entropy", lines)


def _bars(found: dict[str, float], label: str = "accuracy in %") -> Panel:
    places = [float(place) for place in range(len(found))]
    return Panel("Test accuracy" if "%" in label else "Computation", "", label, {label: (places, list(found.values()))},
                 kind="bar", ticks=list(found))  # fmt: skip


def _plan(model: SReT, batch: int, claim: str) -> Plan:
    """Figures of one training step of the authors' batch of 1,024, measured on a few pictures and scaled up."""
    held = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    model = model.to("meta")

    def one_step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(torch.zeros(batch, 3, 224, 224, device="meta")).sum()
        loss.backward()

    scale = 1024 / batch
    flops = count_flops(one_step) * scale
    launch = f"everyformer run {claim} --scale paper --device cuda"
    notes = (
        "one step at batch 1024 of ImageNet-1k, 300 epochs of DeiT's recipe at 1e-3 per 512 pictures; the launch line "
        "trains the small network on all of CIFAR-10, since ImageNet cannot be downloaded"
    )
    return Plan(count_parameters(model), flops, 16 * count_parameters(model) + held * scale, launch, notes)
