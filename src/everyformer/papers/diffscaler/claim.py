"""The claims of Diffscaler: quality on a new data set beside other ways to tune, parameters, and tasks mixed in a batch."""

from __future__ import annotations

import copy
from typing import Any

import peft
import torch
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import count_flops
from everyformer.papers.diffscaler import quality
from everyformer.papers.diffscaler.quality import BITFIT, DIFFSCALER, FULL, LORA, METHODS, Outcome
from everyformer.papers.diffscaler.tuner import DiffScalerConfig
from everyformer.parts.dit import DiT

RANKS = {"birds": 1, "cars": 2, "faces": 4, "flowers": 8}  # of the tasks that share a batch
ROWS = {"smoke": 8, "cpu": 64, "paper": 64}
TASK_CLASSES = 10  # of the task whose parameters are counted


def one_model(job: Job) -> Measurement:
    """The distance as a multiple of full fine-tuning's."""
    ours, full, extras, panels = _beside(FULL, job)
    return Measurement(ours.distance / full.distance, 1.0, extras, panels)


def lora(job: Job) -> Measurement:
    """Distances beside LoRA's with no fewer parameters."""
    return _distances(LORA, job)


def bitfit(job: Job) -> Measurement:
    """Distances beside those of trained biases."""
    return _distances(BITFIT, job)


def _distances(peer: str, job: Job) -> Measurement:
    ours, theirs, extras, panels = _beside(peer, job)
    return Measurement(ours.distance, theirs.distance, extras, panels)


def _beside(peer: str, job: Job) -> tuple[Outcome, Outcome, dict[str, float], tuple[Panel, ...]]:
    base = quality.pretrained(job.scale, device=job.device)
    found = {method: quality.outcome(method, base, job) for method in (DIFFSCALER, peer)}
    extras = {}
    for method, outcome in found.items():
        extras[f"Fréchet distance, {method}"] = outcome.distance
        extras[f"class agreement, {method} (%)"] = 100 * outcome.agreement
        extras[f"trained parameters, {method}"] = float(outcome.parameters)
        extras[f"learning rate, {method}"] = outcome.rate
    bars = {"": ([0.0, 1.0], [outcome.distance for outcome in found.values()])}
    drawings = torch.cat([torch.cat(list(outcome.drawings[:, 0]), dim=1) for outcome in found.values()])
    panels = (
        Panel("Distance to held-out digits", "", "Fréchet distance", bars, kind="bar", ticks=list(found)),
        Panel(f"Digits: {', '.join(found)}", "pixel", "pixel", kind="heat", grid=drawings.tolist()),
    )
    return found[DIFFSCALER], found[peer], extras, panels


def fraction(job: Job) -> Measurement:
    """The parameters of a task, counted on DiT-XL/2."""
    del job
    counts = {method: quality.trained(task_model(method)) for method in METHODS}
    shares = {method: 100 * count / counts[FULL] for method, count in counts.items()}
    bars = {"share": ([float(index) for index in range(len(shares))], list(shares.values()))}
    panel = Panel("Trained parameters of DiT-XL/2", "", "% of full fine-tuning", bars, kind="bar", log_y=True,
                  ticks=list(shares))  # fmt: skip
    extras = {f"trained parameters, {method}": float(count) for method, count in counts.items()}
    return Measurement(shares[DIFFSCALER], shares[FULL], extras, (panel,))


def task_model(method: str) -> nn.Module:
    """DiT-XL/2 without storage, tuned by ``method`` to a data set of ten classes."""
    with torch.device("meta"):
        return quality.tuned(
            method,
            DiT(image_size=32, channels=4, out_channels=8, dim=1152, depth=28, heads=16, classes=TASK_CLASSES),
        )


def together(job: Job) -> Measurement:
    """How far a batch of four tasks is from the tasks one at a time, in parts of the largest output."""
    torch.manual_seed(job.seed)
    model, inputs = many_tasks(quality.network(quality.SIZES[job.scale]), ROWS[job.scale])
    model, inputs = model.to(job.device), [tensor.to(job.device) for tensor in inputs]
    names = [list(RANKS)[row % len(RANKS)] for row in range(ROWS[job.scale])]
    with torch.no_grad():
        mixed = model(*inputs, adapter_names=names)
        apart = torch.empty_like(mixed)
        for task in RANKS:
            rows = [row for row, name in enumerate(names) if name == task]
            model.set_adapter(task)
            apart[rows] = model(*(tensor[rows] for tensor in inputs))
        model.set_adapter(next(iter(RANKS)))
        alone = model(*inputs)
    largest = apart.abs().max()
    return Measurement(float((mixed - apart).abs().max() / largest), float((alone - apart).abs().max() / largest))


def many_tasks(network: DiT, rows: int) -> tuple[Any, list[Tensor]]:
    """A network of random weights with four random tasks of different ranks, and inputs for a batch."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model: Any = None
    for task, rank in RANKS.items():
        config = DiffScalerConfig(rank=rank)
        if model is None:
            model = peft.get_peft_model(copy.deepcopy(network), config, adapter_name=task)
        else:
            model.add_adapter(task, config)
    for name, parameter in model.named_parameters():
        if ".affiner." in name and not name.endswith("table"):
            parameter.data += torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5 / 2
    side = network.image_size
    inputs = [
        torch.randn(rows, network.channels, side, side),
        torch.rand(rows) * 1000,
        torch.arange(rows) % network.classes,
    ]
    return model.eval(), inputs


def plan_one_model() -> Plan:
    """A step of Diffscaler."""
    return _plan("one_model")


def plan_lora() -> Plan:
    """A step of Diffscaler; LoRA's costs about the same."""
    return _plan("lora")


def plan_bitfit() -> Plan:
    """A step of Diffscaler."""
    return _plan("bitfit")


def plan_fraction() -> Plan:
    """What a training step would cost; here nothing is trained."""
    return _plan("fraction", "the run here only counts")


def plan_together() -> Plan:
    """What a training step would cost; here nothing is trained."""
    return _plan("together", "the run here compares outputs of a network of random weights")


def _plan(
    claim: str,
    here: str = "the run at this scale has 60,000 digits and a larger DiT on one GPU: the paper's data sets are not here",
) -> Plan:
    model, batch = task_model(DIFFSCALER), 32
    with torch.device("meta"):
        flops = count_flops(lambda: model(torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.long)))
    parameters, ours = sum(parameter.numel() for parameter in model.parameters()), quality.trained(model)
    # Through the frozen weights the backward pass goes once, as far as the forward pass.
    activations = batch * 28 * 256 * 1152 * 20 * 4
    notes = f"one step of DiT-XL/2 on 32 latents of 256 x 256 pixels, {ours:,} parameters trained; {here}"
    launch = f"everyformer run diffscaler.{claim} --scale paper --device cuda --precision bf16-mixed"
    return Plan(parameters, 2.0 * batch * flops, 4 * parameters + 12 * ours + activations, launch, notes)
