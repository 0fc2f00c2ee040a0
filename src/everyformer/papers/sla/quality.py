"""What SLA's quality costs: a small diffusion transformer on digits, fine-tuned with SLA and with either branch alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel
from everyformer.lab import data
from everyformer.lab.train import History, fit
from everyformer.papers.sla.layer import SparseLinearAttention
from everyformer.parts.diffusion import flow_matching_loss, sample
from everyformer.parts.dit import DiT

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
# 64 blocks of 16 tokens: at 1,024 tokens, blocks of 64 would leave 5% to be less than one block.
SETTINGS = {"critical": 0.05, "negligible": 0.10, "block": 16}
BATCHES = 10  # batches in what counts as an epoch, and so steps between two points of a curve


@dataclasses.dataclass(frozen=True)
class Size:
    """The model, and steps of pretraining and of fine-tuning."""

    images: str
    dim: int
    depth: int
    heads: int
    batch: int
    pretrain: int
    finetune: int


SIZES = {
    "smoke": Size("mnist_500", dim=16, depth=1, heads=1, batch=4, pretrain=20, finetune=6),
    # The longest pretraining that leaves room for three seeds in ten minutes, and the width that goes with it.
    "cpu": Size("mnist_test", dim=32, depth=2, heads=1, batch=8, pretrain=900, finetune=300),
    "paper": Size("mnist_train", dim=384, depth=12, heads=6, batch=256, pretrain=50_000, finetune=2_000),
}


class LinearOnly(SparseLinearAttention):
    """Linear attention over all tokens; its projection starts as the identity, since nothing else gives an output."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim, critical=0.0, negligible=0.0, block=SETTINGS["block"], linear_over="all")  # type: ignore[arg-type]
        nn.init.eye_(self.proj.weight)


def sparse_only(head_dim: int) -> nn.Module:
    """SLA whose projection stays at zero: block-sparse attention alone, with as many critical blocks."""
    return SparseLinearAttention(head_dim, **SETTINGS).requires_grad_(False)  # type: ignore[arg-type]


VARIANTS: dict[str, Callable[[int], Callable[..., Tensor]]] = {
    "full attention": lambda head_dim: F.scaled_dot_product_attention,
    "SLA": lambda head_dim: SparseLinearAttention(head_dim, **SETTINGS),  # type: ignore[arg-type]
    "sparse only": sparse_only,
    "linear only": LinearOnly,
}


def with_attention(model: DiT, variant: str) -> DiT:
    """A copy of ``model`` whose attention is that of ``VARIANTS[variant]``."""
    changed = copy.deepcopy(model)
    for block in changed.blocks:
        attention = block.attention  # type: ignore[union-attr]
        attention.attend = VARIANTS[variant](attention.head_dim)  # type: ignore[union-attr,arg-type]
    return changed


def digits(name: str) -> tuple[Tensor, Tensor]:
    """Digits (samples, 1, 32, 32) in [-1, 1], and their labels."""
    images, labels = data.digits(name)
    return F.pad(images.float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0).unsqueeze(1), labels


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The denoising loss on images, labels, noise and noise levels."""
    images, labels, noise, sigmas = batch
    return flow_matching_loss(model, images, labels, noise=noise, sigmas=sigmas).float()


def batches(images: Tensor, labels: Tensor, size: int, seed: int) -> Iterator[Batch]:
    """Random batches with their noise and noise levels, a function of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(BATCHES):
        index = torch.randint(len(images), (size,), generator=generator)
        noise = torch.randn(size, *images.shape[1:], generator=generator)
        yield images[index], labels[index], noise, torch.rand(size, generator=generator)


def train(
    job: Job, model: DiT, images: Tensor, labels: Tensor, *, name: str, steps: int, rate: float, batch: int, first: int
) -> History:
    """Train by the one recipe that pretraining and every variant share, the learning rate falling from ``rate``."""
    return fit(
        model,
        loss,
        lambda epoch: batches(images, labels, batch, 10_000 * job.seed + first + epoch),
        optimizer=lambda parameters: torch.optim.Adam([p for p in parameters if p.requires_grad], rate),
        # Falling to zero: otherwise the noise of the last steps is larger than what separates the variants.
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - min(step / steps, 1)),
        schedule_every="step",
        steps=steps,
        folder=job.folder / name.replace(" ", "_"),
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        strategy=job.strategy,
        label=name,
    )


@torch.no_grad()
def held_out(model: DiT, batch: Batch, device: str) -> float:
    """The loss on images, noise and levels that are the same for every model."""
    model.eval().to(device)
    parts = zip(*(tensor.to(device).split(50) for tensor in batch), strict=True)
    return sum(loss(model, part).item() * len(part[0]) for part in parts) / len(batch[0])


def run(job: Job) -> Measurement:
    """Pretrain with full attention, fine-tune every variant alike, and compare what of the loss gap each closes."""
    size = SIZES[job.scale]
    images, labels = digits(size.images)
    test = max(len(images) // 20, 50)
    generator = torch.Generator().manual_seed(12345)
    shape = images[-test:].shape
    unseen = (
        images[-test:],
        labels[-test:],
        torch.randn(shape, generator=generator),
        torch.rand(test, generator=generator),
    )
    images, labels = images[:-test], labels[:-test]

    torch.manual_seed(job.seed)
    model = DiT(image_size=32, patch=1, channels=1, dim=size.dim, depth=size.depth, heads=size.heads, classes=10)
    before = train(
        job, model, images, labels, name="pretraining", steps=size.pretrain, rate=3e-3, batch=size.batch, first=0
    )
    untuned = {name: held_out(with_attention(model, name), unseen, job.device) for name in VARIANTS}
    tuned, models, curves = {}, {}, {}
    for name in VARIANTS:
        models[name] = with_attention(model, name)
        history = train(
            job, models[name], images, labels, name=name, steps=size.finetune, rate=1e-3, batch=size.batch, first=5_000
        )
        curves[name] = history.train
        tuned[name] = held_out(models[name], unseen, job.device)

    # The gap: what putting sparse attention into the pretrained model costs before any fine-tuning.
    gap = untuned["SLA"] - tuned["full attention"]
    closed = {name: 100 * (untuned["SLA"] - tuned[name]) / gap for name in ("SLA", "sparse only", "linear only")}
    rival = max(("sparse only", "linear only"), key=lambda name: closed[name])
    extras = {f"loss, {name}, fine-tuned": value for name, value in tuned.items()}
    extras |= {f"loss, {name}, before fine-tuning": value for name, value in untuned.items()}
    extras |= {f"gap closed by {name} (%)": value for name, value in closed.items()}
    extras["pretraining loss"] = before.train[-1]
    places = [float(index) for index in range(len(VARIANTS))]
    panels = (
        Panel(
            "Held-out denoising loss",
            "",
            "MSE of the velocity",
            {"before fine-tuning": (places, list(untuned.values())), "after": (places, list(tuned.values()))},
            kind="bar",
            ticks=list(VARIANTS),
        ),
        Panel(
            "Fine-tuning from the same weights",
            "steps",
            "training loss",
            {
                name: ([min((i + 1) * BATCHES, size.finetune) for i in range(len(ys))], ys)
                for name, ys in curves.items()
            },
        ),
        pictures(job, {name: models[name] for name in ("full attention", "SLA", "sparse only")}),
    )
    return Measurement(closed["SLA"], closed[rival], extras, panels)


def pictures(job: Job, models: dict[str, DiT]) -> Panel:
    """The digits 3 and 8 drawn by each model from the same noise, side by side."""
    noise = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(job.device)
    labels = torch.tensor([3, 8], device=job.device)
    steps = 2 if job.scale == "smoke" else 20
    drawn = [
        torch.cat(list(sample(model.eval(), noise, labels, steps=steps)[:, 0]), dim=0) for model in models.values()
    ]
    grid = torch.cat(drawn, dim=1).clamp(-1, 1).cpu().tolist()
    return Panel(f"Digits drawn by {', '.join(models)}", "pixel", "pixel", kind="heat", grid=grid)
