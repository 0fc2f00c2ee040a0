"""Accuracy, multiply-adds and latency of the vision backbones side by side: `python benchmarks/vision.py`.

Small networks for 32 x 32 pixels, one of each backbone and of each baseline near each of two costs, are trained by the one
recipe of `everyformer.lab.images` on the part of CIFAR-10 that the lab has, three seeds each, equally many passes; then
all are timed in one run. The figures are in benchmarks/vision.json, the plot in benchmarks/vision.svg. A training that
is done is kept: start again after an interruption and it goes on. `--time` only times, on a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import StrMethodFormatter
from timm.utils import reparameterize_model
from torch import nn

from everyformer.catalog import Job
from everyformer.files import write_atomic
from everyformer.lab import environment, images, measure
from everyformer.papers.favit.model import FaViT
from everyformer.papers.fcaformer.model import FcaFormer
from everyformer.papers.fmvit.model import FMViT
from everyformer.papers.sret.model import SReT
from everyformer.papers.vit_resnas.model import Stage, ViTResNAS
from everyformer.papers.wavemix.model import WaveMix

COSTS = (4_000_000, 12_000_000)  # multiply-adds of one picture, as near as the widths that a network can have come
SEEDS = (0, 1, 2)
PICTURES, EPOCHS = 7_680, 3
BATCH = 64
FILE = Path(__file__).with_suffix(".json")


def fcaformer(width: int) -> nn.Module:
    """Plain: one stage on patches of 4 x 4, cross tokens between all blocks."""
    return FcaFormer(img_size=32, num_classes=10, dims=(4 * width,), depths=(4,), heads=(2,), patch=4, patches=True)


def sret(width: int) -> nn.Module:
    """Every block applied twice; 64 tokens in the first stage."""
    return SReT(
        img_size=32, num_classes=10, base_dim=2 * width, heads=(1, 2, 4), blocks=(1, 3, 2), depths=(2, 6, 4),
        stem_strides=(2, 2, 1),
    )  # fmt: skip


def wavemix(width: int) -> nn.Module:
    """One level of the wavelet transform on half the resolution."""
    return WaveMix(10, dim=4 * width, depth=4, levels=1, stem="strided", stride=1)


def favit(width: int) -> nn.Module:
    """Three stages on patches of 2 x 2; windows of 4."""
    return FaViT(
        num_classes=10, dims=(16 * width, 32 * width, 64 * width), depths=(1, 1, 2), heads=(1, 2, 4),
        mlp_ratios=(4, 4, 4), reductions=(4, 2, 1), patch=2, window=4,
    )  # fmt: skip


def vit_resnas(width: int) -> nn.Module:
    """Three stages on patches of 4 x 4: 64, 16 and 4 tokens."""
    stages = [Stage(4 * width * 2**stage, width * 2**stage, [(4, 16 * width * 2**stage)] * 2) for stage in range(3)]
    return ViTResNAS(stages=stages, middle=None, num_classes=10, img_size=32, patch=4)


def fmvit(width: int) -> nn.Module:
    """Three stages on patches of 2 x 2; the gMLPs take the width, as the others come in whole heads of 32."""
    return FMViT(
        num_classes=10, patch=2, dims=(16, 64, 128), local=(1, 1, 1), mixed=(0, 1, 1), reductions=(4, 2, 1),
        ratio=width / 8,
    )  # fmt: skip


def folded_macs(model: nn.Module) -> int:
    """Multiply-adds of a picture once branches that fold are folded; most networks have none."""
    return images.macs(reparameterize_model(model), 32)


BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "FcaFormer": fcaformer, "FaViT": favit, "SReT": sret, "WaveMix": wavemix, "ViT-ResNAS": vit_resnas, "FMViT": fmvit,
}  # fmt: skip
BASELINES: dict[str, images.Kind] = {"DeiT": "deit", "Swin": "swin", "ConvNeXt": "convnext", "ResNet": "resnet"}


def label(name: str, cost: int) -> str:
    """The name of a network in the figures."""
    return f"{name} at {cost / 1e6:.0f}M"


def networks(cost: int) -> dict[str, Callable[[], nn.Module]]:
    """How to build each network at a cost."""
    ours = {name: partial(images.of_cost, build, cost, cost=folded_macs) for name, build in BACKBONES.items()}
    return ours | {name: partial(images.baseline, kind, cost) for name, kind in BASELINES.items()}


def train(name: str, cost: int, seed: int, folder: Path) -> dict[str, float]:
    """One network, trained from its first weights or from where it was interrupted."""
    torch.manual_seed(seed)
    model = networks(cost)[name]()
    found = {"multiply_adds": folded_macs(model), "parameters": sum(p.numel() for p in model.parameters())}
    pictures = images.cifar10().first(PICTURES, 3_000)
    job = Job("cpu", seed, "cpu", folder / f"{name}-{cost}-{seed}")
    accuracy, _ = images.train_classifier(model, pictures, job, name=f"{name} {seed}", epochs=EPOCHS)
    return found | {"accuracy": accuracy}


def train_all(folder: Path, workers: int, found: dict[str, Any]) -> None:
    """Train what is not yet trained; every accuracy is written as soon as it is known."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        waiting = {}
        for seed, cost, name in itertools.product(SEEDS, COSTS, [*BACKBONES, *BASELINES]):
            row = found["networks"].setdefault(label(name, cost), {"accuracy": {}})
            if str(seed) not in row["accuracy"]:
                waiting[pool.submit(train, name, cost, seed, folder)] = row, str(seed)
        for done in as_completed(waiting):
            row, seed_name = waiting[done]
            result = done.result()
            row["accuracy"][seed_name] = result.pop("accuracy")
            row.update(result)
            save(found)


def measure_latency(found: dict[str, Any]) -> None:
    """Milliseconds of a batch, eager and compiled, all alternating in one run."""
    picture = torch.randn(BATCH, 3, 32, 32)
    candidates: dict[str, Callable[[], Any]] = {}
    for cost in COSTS:
        for name, build in networks(cost).items():
            model = reparameterize_model(build().eval())
            compiled = torch.compile(model)
            candidates[f"{label(name, cost)}|eager"] = partial(model, picture)
            candidates[f"{label(name, cost)}|compiled"] = partial(compiled, picture)
    torch._dynamo.config.cache_size_limit = len(candidates)
    with torch.inference_mode():
        seconds = measure.side_by_side(candidates, rounds=15, warmup=2)
    for key, times in seconds.items():
        name, how = key.split("|")
        found["networks"][name][f"{how}_ms"] = 1000 * measure.median(times)
    found["timed_on"] = environment.describe("cpu") | {"threads": torch.get_num_threads()}


def save(found: dict[str, Any]) -> None:
    write_atomic(FILE, json.dumps(found, indent=1).encode())


def plot(found: dict[str, Any]) -> None:
    """Accuracy over multiply-adds and over latency; the two costs of a network are joined."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), sharey=True, layout="constrained")
    kinds = [("multiply_adds", "multiply-adds of a picture (M)", 1e-6)]
    kinds += [(f"{how}_ms", f"{how}, ms for {BATCH} pictures", 1.0) for how in ("eager", "compiled")]
    for axis, (key, title, scale) in zip(axes, kinds, strict=True):
        for index, name in enumerate([*BACKBONES, *BASELINES]):
            rows = [found["networks"][label(name, cost)] for cost in COSTS]
            spread = [measure.spread(list(row["accuracy"].values())) for row in rows]
            means = [one.mean for one in spread]
            errors = [[one.mean - one.low for one in spread], [one.high - one.mean for one in spread]]
            style: dict[str, Any] = {"marker": "o"} if name in BACKBONES else {"marker": "s", "linestyle": "--"}
            axis.errorbar(
                [scale * row[key] for row in rows],
                means,
                yerr=errors,
                color=f"C{index}",
                capsize=2,
                label=name,
                **style,
            )
        axis.set(xlabel=title, xscale="log")
        for which in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            which(StrMethodFormatter("{x:g}"))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on 3,000 test pictures (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    for kind in ("svg", "png"):
        figure.savefig(FILE.with_suffix(f".{kind}"), dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true", help="only time the networks, and draw")
    parser.add_argument("--folder", type=Path, default=Path(".vision"), help="where unfinished trainings are kept")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once, a thread each")
    options = parser.parse_args()
    found = json.loads(FILE.read_text()) if FILE.exists() else {"networks": {}}
    if not options.time:
        train_all(options.folder, options.workers, found)
    measure_latency(found)
    found |= {
        "epochs": EPOCHS,
        "pictures": PICTURES,
        "seeds": list(SEEDS),
        "commit": environment.commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    save(found)
    plot(found)


if __name__ == "__main__":
    main()
