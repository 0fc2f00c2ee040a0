"""The claims of NVFP4: a small GPT of bytes trained in four bits, beside FP8, bf16 and recipes that lack a part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import text
from everyformer.lab.measure import median, side_by_side
from everyformer.ops.nvfp4 import quantise
from everyformer.papers.nvfp4 import fp8
from everyformer.papers.nvfp4.method import Recipe, convert, linear

Treatment = Callable[[nn.Module], nn.Module]
METHODS: dict[str, Treatment] = {"bf16": lambda model: model, "FP8": fp8.convert, "NVFP4": convert}
LACKING = {
    "two-dimensional scales": Recipe(two_dimensional=False),
    "Hadamard transform": Recipe(hadamard=False),
    "stochastic rounding": Recipe(stochastic=False),
    "layers in high precision": Recipe(keep_high_precision=0.0),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """A GPT and its training, on 8 pieces of 128 bytes a step; a quarter of four blocks stays in high precision."""

    width: int
    steps: int
    layers: int = 4


def _size(job: Job, steps: int) -> Size:
    if job.scale == "smoke":
        return Size(32, 8, layers=2)
    return Size(64, steps) if job.scale == "cpu" else Size(768, 20_000, layers=12)


def _corpus(job: Job) -> text.Text:
    return text.corpus("made_up" if job.scale == "smoke" else "tiny_shakespeare")


def trained(job: Job, name: str, treat: Treatment, size: Size) -> nn.Module:
    """The model after training, all else in bfloat16: the same initial weights, data and recipe for every treatment."""
    torch.manual_seed(job.seed)
    model = treat(text.build("gpt", width=size.width, layers=size.layers, heads=size.width // 16))
    text.fit(
        model, _corpus(job).train, steps=size.steps, batch=8, folder=job.folder / name.replace(" ", "_"), seed=job.seed,
        label=f"GPT in {name}", device=job.device, precision="bf16-mixed",
    )  # fmt: skip
    return model


def _loss(job: Job, model: nn.Module) -> float:
    with torch.autocast(torch.device(job.device).type, torch.bfloat16):
        return text.evaluate(model, _corpus(job).test, pieces=32 if job.scale == "smoke" else 256)


def loss_above_fp8(job: Job) -> Measurement:
    """Final validation loss of NVFP4 above that of FP8, per cent."""
    return _loss_above(job, "FP8")


def loss_above_bf16(job: Job) -> Measurement:
    """Final validation loss of NVFP4 above that of bf16, per cent."""
    return _loss_above(job, "bf16")


def _loss_above(job: Job, baseline: str) -> Measurement:
    size = _size(job, steps=400)
    losses = {name: _loss(job, trained(job, name, METHODS[name], size)) for name in (baseline, "NVFP4")}
    above = 100 * (losses["NVFP4"] / losses[baseline] - 1)
    extras = {f"loss, {name}": value for name, value in losses.items()}
    return Measurement(above, 0.0, extras, (_bars("Validation loss", "nats a byte", losses),))


def ablation(job: Job) -> Measurement:
    """Final loss of recipes that lack a part each, above that of the full one; the least is the metric."""
    size = _size(job, steps=120)
    full = _loss(job, trained(job, "NVFP4", convert, size))
    above = {}
    for part, recipe in LACKING.items():
        model = trained(job, f"NVFP4 without {part}", lambda model, recipe=recipe: convert(model, recipe), size)  # type: ignore[misc]
        above[f"without {part}"] = 100 * (_loss(job, model) / full - 1)
    extras = {"loss, full recipe": full} | {f"loss above the full recipe, {name}": v for name, v in above.items()}
    return Measurement(min(above.values()), 0.0, extras, (_bars("Loss above the full recipe", "%", above),))


def continuations(job: Job) -> Measurement:
    """How often each model finds the true continuation of a play among nine from elsewhere, and what NVFP4 loses."""
    size = _size(job, steps=300)
    questions = 20 if job.scale == "smoke" else 400
    pieces = choices(_corpus(job).test, questions, seed=job.seed)
    accuracy = {
        name: 100 * answered(trained(job, name, METHODS[name], size), pieces.to(job.device))
        for name in ("FP8", "NVFP4")
    }
    extras = {f"accuracy, {name}": value for name, value in accuracy.items()}
    panel = _bars("True continuation out of ten", "%", accuracy)
    return Measurement(accuracy["FP8"] - accuracy["NVFP4"], 0.0, extras, (panel,))


def choices(
    plays: Int[Tensor, " time"], questions: int, *, seed: int, options: int = 10, context: int = 64, length: int = 32
) -> Int[Tensor, "questions options context+length"]:
    """Passages with their true continuation first, and then others from random places of the text."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(plays) - context - length, (questions, options, 1), generator=generator)
    begun = plays[places[:, :1] + torch.arange(context)].expand(-1, options, -1)
    ended = plays[places + context + torch.arange(length)]
    return torch.cat([begun, ended], -1)


@torch.no_grad()
def answered(model: nn.Module, pieces: Int[Tensor, "questions options bytes"], length: int = 32) -> float:
    """Share of the questions whose first option is the likeliest: its last ``length`` bytes have the least loss."""
    model.eval()
    right = 0
    for part in pieces.split(8):
        flat = part.flatten(0, 1)
        with torch.autocast(flat.device.type, torch.bfloat16):
            logits = model(flat[:, :-1]).logits[:, -length:]
        losses = F.cross_entropy(logits.float().mT, flat[:, -length:], reduction="none").sum(-1).view(part.shape[:2])
        right += int((losses.argmin(1) == 0).sum())
    return right / len(pieces)


def memory(job: Job) -> Measurement:
    """Bytes that a feed-forward layer keeps for its backward pass: saved tensors other than parameters."""
    inputs, outputs = (64, 256) if job.scale == "smoke" else (768, 3072)
    torch.manual_seed(job.seed)
    layer = nn.Linear(inputs, outputs, device=job.device, dtype=torch.bfloat16)
    x = torch.randn(16 * 128, inputs, device=job.device, dtype=torch.bfloat16, requires_grad=True)
    forwards = {"NVFP4": lambda: linear(x, layer.weight, layer.bias, recipe=Recipe()), "bf16": lambda: layer(x)}
    kept = {name: kept_bytes(forward, layer) for name, forward in forwards.items()}
    pieces = torch.randint(text.BYTES, (8, text.LENGTH + 1), device=job.device)
    extras = {"ratio": kept["bf16"] / kept["NVFP4"]}
    for name in forwards:
        size = _size(job, steps=0)
        gpt = METHODS[name](text.build("gpt", width=size.width, layers=size.layers)).to(job.device, torch.bfloat16)
        whole = kept_bytes(lambda gpt=gpt: text.loss(gpt, pieces), gpt)  # type: ignore[misc]
        extras[f"kept by a whole small GPT, {name} (MB)"] = whole / 1e6
    megabytes = {name: value / 1e6 for name, value in kept.items()}
    return Measurement(megabytes["NVFP4"], megabytes["bf16"], extras, (_bars("Kept for backward", "MB", megabytes),))


def kept_bytes(forward: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes of the tensors that a forward pass saves, each once, without the module's own parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()  # held until the count is done, so that no address is used twice
        total = sum(saved.values())
    del output
    return total


def quantiser(job: Job) -> Measurement:
    """Values that are quantised a second, beside torchao, with the scale of the tensor computed by both."""
    side = 256 if job.scale == "smoke" else 2048
    torch.manual_seed(job.seed)
    x = torch.randn(side, side, device=job.device)
    runs = {"everyformer": lambda: quantise(x), "torchao": torchao(x)}
    times = side_by_side(runs, rounds=3 if job.scale == "smoke" else 15, device=job.device)
    rates = {name: x.numel() / median(values) / 1e6 for name, values in times.items()}
    extras = {"ratio": rates["everyformer"] / rates["torchao"]}
    panel = _bars("Quantising to NVFP4", "million values a second", rates)
    return Measurement(rates["everyformer"], rates["torchao"], extras, (panel,))


def torchao(x: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """The same work by torchao."""
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    return lambda: nvfp4_quantize(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().amax()))


def _bars(title: str, unit: str, bars: dict[str, float]) -> Panel:
    places = [float(index) for index in range(len(bars))]
    return Panel(title, "", unit, {title.lower(): (places, list(bars.values()))}, kind="bar", ticks=list(bars))


def plan_paper() -> Plan:
    """The paper's 12B model on 10T tokens; its training step counts six operations for each parameter and token."""
    parameters, tokens = 12_000_000_000, 736 * 8192
    return Plan(
        parameters,
        6.0 * parameters * tokens,
        parameters * (4 + 4 + 8 + 4.5 / 8),
        "everyformer run nvfp4 --scale paper --device cuda",
        "a batch of 736 sequences of 8,192; about 1.7 million steps; weights, gradients, Adam's state and packed weights "
        "without activations. The command trains a GPT of 12 layers and 768 features, not the hybrid model, whose data "
        "and weights are not published with the paper, and answers no MMLU-pro.",
    )
