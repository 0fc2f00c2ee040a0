"""The claims of FMViT: beside networks of equal measured latency, frequencies alone and mixed, and what folding saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import timm.models
import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import data, images
from everyformer.lab.measure import count_parameters, median, side_by_side
from everyformer.lab.train import History
from everyformer.papers.fmvit.model import VARIANTS, FMViT

# A narrow network for 32 x 32 pixels; its FMBs see maps of 8 x 8 and 4 x 4.
SMALL: dict[str, Any] = {
    "num_classes": 10,
    "patch": 2,
    "dims": (16, 64, 128),
    "local": (1, 1, 1),
    "mixed": (0, 1, 1),
    "reductions": (4, 2, 1),
}
EPOCHS = {"smoke": 1, "cpu": 4, "paper": 300}
EPOCHS_OF_THREE = {**EPOCHS, "cpu": 3}  # three networks take the time of two
PUBLISHED_BATCH = 1024
LATENCY_BATCH = 32
TOLERANCE = 1e-5


def pictures(job: Job) -> images.Pictures:
    """What all networks of a job see: digits at smoke scale, 5,120 CIFAR-10 pictures, or all of CIFAR-10."""
    if job.scale == "cpu":
        return images.cifar10().first(5120, 3000)
    if job.scale == "paper":
        return images.cifar10(full=True)
    digits, labels = data.digits("mnist_500")
    padded = F.pad(digits, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1).contiguous()
    return images.Pictures((padded[:384], labels[:384]), (padded[384:], labels[384:]))


def folded_macs(model: nn.Module, size: int = 32) -> int:
    """Multiply-adds of one picture after folding."""
    return images.macs(reparameterize_model(model), size)


def mobileone(width: int) -> nn.Module:
    """A MobileOne for 32 x 32 pixels: pairs of a depthwise and a pointwise block at strides of 2, 4 and 8."""
    channels = [8 * width * 2**stage for stage in range(3)]
    blocks, inside = [], channels[0]
    for stage, (depth, outside) in enumerate(zip((2, 4, 4), channels, strict=True)):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            blocks.append(timm.models.ByoBlockCfg("one", d=1, c=inside, s=stride, gs=1))
            pointwise = {"kernel_size": 1}
            blocks.append(timm.models.ByoBlockCfg("one", d=1, c=outside, s=1, gs=0, block_kwargs=pointwise))
            inside = outside
    config = timm.models.ByoModelCfg(blocks=tuple(blocks), stem_type="one", stem_chs=channels[0])
    return timm.models.ByobNet(config, num_classes=10)


def resnet(width: int) -> nn.Module:
    """A ResNet for 32 x 32 pixels: a stem of stride 2, as FMViT's, and two basic blocks at strides of 2, 4, 8 and 16."""
    channels = tuple(4 * width * 2**stage for stage in range(4))
    models: Any = timm.models
    network = models.ResNet(models.resnet.BasicBlock, (2, 2, 2, 2), channels=channels, num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
    network.maxpool = nn.Identity()
    return network  # type: ignore[no-any-return]


def relative_latency(method: nn.Module, device: str, rounds: int = 25) -> Callable[[nn.Module], float]:
    """A cost: a network's time for 32 pictures over that of ``method``, both folded and timed in turns."""
    x = torch.randn(LATENCY_BATCH, 3, 32, 32, device=device)
    ours = images.inference(reparameterize_model(method), x)

    def cost(model: nn.Module) -> float:
        theirs = images.inference(reparameterize_model(model), x)
        times = side_by_side({"ours": ours, "theirs": theirs}, rounds=rounds, warmup=2, device=device)
        return median(times["theirs"]) / median(times["ours"])

    return cost


def tensorrt(job: Job) -> Measurement:
    """Beside a ResNet of equal latency."""
    return _at_equal_latency(job, "ResNet", "fmvit_l", "resnet101", lambda cost: images.of_cost(resnet, 1, cost=cost))


def coreml(job: Job) -> Measurement:
    """Beside a MobileOne of equal latency."""
    return _at_equal_latency(
        job, "MobileOne", "fmvit_s", "mobileone_s1", lambda cost: images.of_cost(mobileone, 1, cost=cost)
    )


def plain(job: Job) -> Measurement:
    """Beside a plain vision transformer of equal latency."""
    return _at_equal_latency(
        job, "DeiT", "fmvit_b", "deit_small_patch16_224", lambda cost: images.baseline("deit", 1, cost=cost)
    )


def _at_equal_latency(
    job: Job, peer: str, ours: str, theirs: str, fitted: Callable[[Callable[[nn.Module], float]], nn.Module]
) -> Measurement:
    """FMViT and ``peer`` by one recipe; ``fitted`` finds the peer's width, and at paper scale both are timm's."""
    torch.manual_seed(job.seed)
    if job.scale == "paper":
        models = {
            name: _enlarged(timm.create_model(key, num_classes=10)) for name, key in (("FMViT", ours), (peer, theirs))
        }
        cost = relative_latency(models["FMViT"], job.device)
    else:
        method = FMViT(**SMALL)
        cost = relative_latency(method, job.device, rounds=2 if job.scale == "smoke" else 25)
        models = {"FMViT": method, peer: fitted(cost)}
    extras = {f"latency, {peer} / FMViT": cost(models[peer])}
    return _trained(job, models, EPOCHS[job.scale], extras)


def _enlarged(network: nn.Module) -> nn.Module:
    """A network for 224 x 224 pixels, on smaller pictures."""
    return nn.Sequential(nn.Upsample(size=224, mode="bilinear"), network)


def frequencies(job: Job) -> Measurement:
    """Both frequencies beside low alone and high alone, whose gMLPs are as wide as equal multiply-adds take."""
    torch.manual_seed(job.seed)
    settings = SMALL if job.scale != "paper" else {**VARIANTS["fmvit_s"], "num_classes": 10}
    size = 32 if job.scale != "paper" else 224
    both = FMViT(**settings)
    models: dict[str, nn.Module] = {"both": both}
    for name, low in (("low alone", 1.0), ("high alone", 0.0)):
        models[name] = images.of_cost(
            lambda step, low=low: FMViT(**{**settings, "low": low, "ratio": step / 16}),  # type: ignore[misc]
            folded_macs(both, size),
            cost=lambda model: folded_macs(model, size),
        )
    if job.scale == "paper":
        models = {name: _enlarged(model) for name, model in models.items()}
    return _trained(job, models, EPOCHS_OF_THREE[job.scale], {})


def _trained(job: Job, models: dict[str, nn.Module], epochs: int, extras: dict[str, float]) -> Measurement:
    """Accuracy of the first model beside the best of the others."""
    shown = pictures(job)
    found: dict[str, float] = {}
    curves: dict[str, History] = {}
    for name, model in models.items():
        extras[f"parameters, folded, {name}"] = float(count_parameters(reparameterize_model(model)))
        extras[f"multiply-adds, folded, {name}"] = float(folded_macs(model))
        # A width that was found by measuring may be another one next time: each has its own folder to resume from.
        folder = f"{name.replace(' ', '_')}_{count_parameters(model)}"
        found[name], curves[name] = images.train_classifier(model, shown, job, name=folder, epochs=epochs)
        extras[f"accuracy, {name}"] = found[name]
        extras[f"training seconds, {name}"] = curves[name].seconds
    first, *others = found
    return Measurement(found[first], max(found[name] for name in others), extras, (_losses(curves),))


def _losses(curves: dict[str, History]) -> Panel:
    lines = {name: ([i + 1.0 for i in range(len(run.train))], list(run.train)) for name, run in curves.items()}
    return Panel("Training loss", "epoch", "cross entropy", lines)


def lived_in(model: nn.Module, size: int) -> nn.Module:
    """``model`` in evaluation, its batch norms holding what they see in random pictures, as after a training."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average over all batches
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
    device = next(model.parameters()).device
    with torch.no_grad():
        model.train()
        for _ in range(2):
            model(torch.randn(4, 3, size, size, device=device))
    return model.eval()


def folding(job: Job) -> Measurement:
    """Time of FMViT-S with its branches and folded, in turns, and how far the outputs differ.

    Raises:
        ArithmeticError: the outputs differ by more than 1e-5.
    """
    torch.manual_seed(job.seed)
    variant, size, batch, rounds = ("fmvit_t", 64, 2, 3) if job.scale == "smoke" else ("fmvit_s", 224, 4, 11)
    unfolded = lived_in(timm.create_model(variant).to(job.device), size)
    folded = reparameterize_model(unfolded)
    x = torch.randn(batch, 3, size, size, device=job.device)
    extras = {}
    outputs, runs = {}, {}
    for name, model in (("folded", folded), ("with branches", unfolded)):
        runs[name] = images.inference(model, x)
        outputs[name] = runs[name]()
        extras[f"multiply-adds, {name}"] = float(images.macs(model, size))
        extras[f"parameters, {name}"] = float(count_parameters(model))
        extras[f"convolutions and norms, {name}"] = float(
            sum(isinstance(module, nn.Conv2d | nn.BatchNorm2d) for module in model.modules())
        )
    extras["largest difference of the outputs"] = float((outputs["folded"] - outputs["with branches"]).abs().max())
    if extras["largest difference of the outputs"] > TOLERANCE:
        raise ArithmeticError(f"folding changed the outputs by {extras['largest difference of the outputs']}")
    times = side_by_side(runs, rounds=rounds, warmup=2, device=job.device)
    milliseconds = {name: 1000 * median(values) / batch for name, values in times.items()}
    lines = {"ms": ([float(place) for place in range(len(milliseconds))], list(milliseconds.values()))}
    panel = Panel("Forward pass", "", "ms for one picture", lines, kind="bar", ticks=list(milliseconds))
    return Measurement(milliseconds["folded"], milliseconds["with branches"], extras, (panel,))


def plan_tensorrt() -> Plan:
    """FMViT-L against ResNet-101."""
    return _plan("fmvit_l", "tensorrt")


def plan_coreml() -> Plan:
    """FMViT-S against MobileOne-S1."""
    return _plan("fmvit_s", "coreml")


def plan_plain() -> Plan:
    """FMViT-B against DeiT-S."""
    return _plan("fmvit_b", "plain")


def plan_frequencies() -> Plan:
    """FMViT-S with both frequencies and with either alone."""
    return _plan("fmvit_s", "frequencies")


def plan_folding() -> Plan:
    """FMViT-S, timed; nothing is trained."""
    return _plan("fmvit_s", "folding")


def _plan(variant: str, claim: str) -> Plan:
    model: Any = timm.create_model(variant)
    # Forward and backward take three forward passes; about forty maps of the first width stay for the backward pass.
    flops = 6.0 * images.macs(model) * PUBLISHED_BATCH
    activations = PUBLISHED_BATCH * 40 * 56 * 56 * model.feature_info[0]["num_chs"] * 4
    launch = f"everyformer run fmvit.{claim} --scale paper --device cuda"
    notes = (
        f"one training step of {variant} with its branches at batch {PUBLISHED_BATCH} (our choice) and 224 pixels; the run "
        "here trains for 300 epochs on the whole of CIFAR-10, enlarged to 224 pixels; folding trains nothing"
    )
    return Plan(count_parameters(model), flops, 16 * count_parameters(model) + activations, launch, notes)
