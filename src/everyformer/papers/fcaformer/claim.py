"""The claims of FcaFormer: beside DeiT and ConvNeXt of equal multiply-adds, and beside itself without cross tokens."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import data, images, train
from everyformer.lab.measure import count_parameters
from everyformer.papers.fcaformer.model import VARIANTS, FcaFormer

# Narrow networks for 32 x 32 pixels. Their cross tokens come from 8 x 8 tokens, four from each block.
PLAIN: dict[str, Any] = {"dims": (32,), "depths": (4,), "heads": (2,), "patch": 4, "patches": True}
HYBRID: dict[str, Any] = {"dims": (16, 32), "depths": (1, 4), "heads": (0, 2), "patch": 2}
EPOCHS = {"smoke": 1, "cpu": 3, "paper": 300}
PUBLISHED_BATCH = 1024


def _pictures(job: Job) -> images.Pictures:
    if job.scale != "smoke":
        return images.cifar10(full=job.scale == "paper")
    digits, labels = data.digits("mnist_500")
    pictures = F.pad(digits, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1).contiguous()
    return images.Pictures((pictures[:384], labels[:384]), (pictures[384:], labels[384:]))


def _enlarged(network: nn.Module) -> nn.Module:
    """A network for 224 x 224 pixels, on smaller pictures."""
    return nn.Sequential(nn.Upsample(size=224, mode="bilinear"), network)


def _small(settings: dict[str, Any], **options: Any) -> FcaFormer:
    return FcaFormer(img_size=32, num_classes=10, **settings, **options)


def without_cross_tokens(settings: dict[str, Any], **options: Any) -> FcaFormer:
    """The network without cross tokens, its feed-forward parts as wide as it takes to have at least the parameters."""
    wanted = count_parameters(FcaFormer(**settings, **options))
    ratio = 4.0
    while count_parameters(model := FcaFormer(**settings, **options, memory=0, mlp_ratio=ratio)) < wanted:
        ratio += 1 / max(settings["dims"])
    return model


def _compare(job: Job, method: nn.Module, baseline: nn.Module, names: tuple[str, str]) -> Measurement:
    """Both trained by one recipe on the same pictures in the same order."""
    pictures = _pictures(job)
    epochs = EPOCHS[job.scale]
    scores, extras, histories = [], {}, {}
    for name, model in zip(names, (method, baseline), strict=True):
        extras[f"parameters, {name}"] = float(count_parameters(model))
        extras[f"multiply-adds, {name}"] = float(images.macs(model, 32))
        score, histories[name] = images.train_classifier(model, pictures, job, name=name, epochs=epochs)
        scores.append(score)
    return Measurement(scores[0], scores[1], extras, (_curves(histories),))


def _curves(histories: dict[str, train.History]) -> Panel:
    lines = {
        name: ([float(step) for step in range(len(history.train))], list(history.train))
        for name, history in histories.items()
    }
    return Panel("Training loss", "epoch", "cross entropy", lines)


def plain(job: Job) -> Measurement:
    """The plain network beside a DeiT of the nearest multiply-adds."""
    torch.manual_seed(job.seed)
    method: nn.Module
    if job.scale == "paper":
        method, baseline = (
            _enlarged(timm.create_model(name, num_classes=10)) for name in ("fcaformer_l0", "deit_tiny_patch16_224")
        )
    else:
        method = _small(PLAIN)
        baseline = images.baseline("deit", images.macs(method, 32))
    return _compare(job, method, baseline, ("FcaFormer", "DeiT"))


def hybrid(job: Job) -> Measurement:
    """The hybrid network beside a ConvNeXt of the nearest multiply-adds."""
    torch.manual_seed(job.seed)
    method: nn.Module
    if job.scale == "paper":
        method, baseline = (
            _enlarged(timm.create_model(name, num_classes=10)) for name in ("fcaformer_l2", "convnext_tiny")
        )
    else:
        method = _small(HYBRID)
        baseline = images.baseline("convnext", images.macs(method, 32))
    return _compare(job, method, baseline, ("FcaFormer", "ConvNeXt"))


def cross_tokens(job: Job) -> Measurement:
    """The hybrid network beside itself without cross tokens."""
    torch.manual_seed(job.seed)
    method: nn.Module
    baseline: nn.Module
    if job.scale == "paper":
        method = _enlarged(FcaFormer(num_classes=10, **VARIANTS["fcaformer_l2"]))
        baseline = _enlarged(without_cross_tokens(VARIANTS["fcaformer_l2"], num_classes=10))
    else:
        method = _small(HYBRID)
        baseline = without_cross_tokens(HYBRID, img_size=32, num_classes=10)
    return _compare(job, method, baseline, ("with cross tokens", "without"))


def cost(job: Job) -> Measurement:
    """Multiply-adds of L2 and ConvNeXt-T at 224 x 224 pixels, those of the other variants and all parameters beside."""
    counted, extras = {}, {}
    for name in ("fcaformer_l0", "fcaformer_l1", "fcaformer_l2", "fcaformer_l3", "fcaformer_l4", "convnext_tiny"):
        model = timm.create_model(name)
        counted[name] = images.macs(model) / 1e9
        extras[f"parameters, {name}"] = float(count_parameters(model))
    extras |= {f"multiply-adds, {name}": value for name, value in counted.items()}
    bars = {"multiply-adds": ([float(index) for index in range(len(counted))], list(counted.values()))}
    panel = Panel("Multiply-adds at 224 pixels", "", "G", bars, kind="bar", ticks=list(counted))
    return Measurement(counted["fcaformer_l2"], counted["convnext_tiny"], extras, (panel,))


def _plan(variant: str, claim: str) -> Plan:
    model = FcaFormer(**VARIANTS[variant])
    parameters = count_parameters(model)
    # Forward and backward take three forward passes; about twenty maps of the first width stay for the backward pass.
    flops = 6.0 * images.macs(model) * PUBLISHED_BATCH
    activations = PUBLISHED_BATCH * 20 * 56 * 56 * model.feature_info[0]["num_chs"] * 4
    launch = f"everyformer run fcaformer.{claim} --scale paper --device cuda --precision bf16-mixed"
    notes = (
        f"one step of {variant} at batch {PUBLISHED_BATCH} and 224 pixels, as published for ImageNet-1k; the run here "
        "trains the same networks for 300 epochs on the whole of CIFAR-10, enlarged to 224 pixels"
    )
    return Plan(parameters, flops, 16 * parameters + activations, launch, notes)


def plan_plain() -> Plan:
    """L0 against DeiT-T."""
    return _plan("fcaformer_l0", "plain")


def plan_hybrid() -> Plan:
    """L2 against ConvNeXt-T."""
    return _plan("fcaformer_l2", "hybrid")


def plan_cross_tokens() -> Plan:
    """L2 against itself without cross tokens."""
    return _plan("fcaformer_l2", "cross_tokens")
