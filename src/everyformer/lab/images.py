"""Pictures: CIFAR-10, the one recipe that all backbones and their baselines train by, and baselines of equal cost."""

from __future__ import annotations

import dataclasses
import functools
import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from everyformer.catalog import Job
from everyformer.lab import data, measure, train

Kind = Literal["deit", "swin", "convnext", "resnet"]
BATCH = 128
PAD = 4  # pixels by which a training picture may be shifted


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures as uint8 (samples, 3, height, width) with their classes (samples,), to train on and to test on."""

    train: tuple[UInt8[Tensor, "train 3 height width"], Tensor]
    test: tuple[UInt8[Tensor, "test 3 height width"], Tensor]

    def first(self, train: int, test: int) -> Pictures:
        """Only so many pictures; the sets are in mixed order."""
        return Pictures((self.train[0][:train], self.train[1][:train]), (self.test[0][:test], self.test[1][:test]))


def cifar10(*, full: bool = False) -> Pictures:
    """CIFAR-10: 15,000 and 3,000 pictures, or ``full`` 50,000 and 10,000, in an order that is mixed and fixed.

    Raises:
        DataMissing: the file is not here and cannot be downloaded.
    """
    sets = _full_cifar10() if full else _cifar10_subset()
    return Pictures(*(_mixed(images, labels) for images, labels in sets))


def _cifar10_subset() -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    arrays = np.load(io.BytesIO(data.read("cifar10_subset")), allow_pickle=False)
    return [(arrays[f"{part}_images"].transpose(0, 3, 1, 2), arrays[f"{part}_labels"]) for part in ("train", "test")]


def _full_cifar10() -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """The binary form: a byte for the class, then 3,072 for red, green and blue."""
    parts: dict[str, list[np.ndarray[Any, Any]]] = {"data": [], "test": []}
    with tarfile.open(fileobj=io.BytesIO(data.read("cifar10"))) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.name.endswith(".bin"):
                file = archive.extractfile(member)
                assert file is not None
                rows = np.frombuffer(file.read(), np.uint8).reshape(-1, 3073)
                parts[member.name.rpartition("/")[2].partition("_")[0]].append(rows)
    return [(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]) for rows in map(np.concatenate, parts.values())]


def _mixed(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    order = np.random.default_rng(0).permutation(len(images))
    return torch.from_numpy(images[order].copy()), torch.from_numpy(labels[order].astype(np.int64))


def normalised(images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Pictures with about zero mean and unit deviation; the figures are CIFAR-10's."""
    mean = torch.tensor([0.4914, 0.4822, 0.4465], device=images.device)[:, None, None]
    deviation = torch.tensor([0.2470, 0.2435, 0.2616], device=images.device)[:, None, None]
    return (images.float() / 255 - mean) / deviation


def augmented(
    images: UInt8[Tensor, "batch 3 height width"], generator: torch.Generator
) -> UInt8[Tensor, "batch 3 height width"]:
    """Each picture shifted by up to four pixels, and every other one mirrored."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (PAD, PAD, PAD, PAD))
    down, right = torch.randint(2 * PAD + 1, (2, batch, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    mirror = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(mirror, columns.flip(1), columns)
    pictures = torch.arange(batch)[:, None, None]
    return padded[pictures, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train_classifier(
    model: nn.Module,
    pictures: Pictures,
    job: Job,
    *,
    name: str,
    epochs: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    seconds: float | None = None,
) -> tuple[float, train.History]:
    """Train ``model`` (pictures to logits) by the recipe, and return its accuracy in per cent on the test pictures.

    The recipe is the same for a backbone and for what it is compared with: AdamW, a linear warm-up over a tenth of the
    steps and a cosine down to zero, label smoothing 0.1, shifts and mirroring, batches of 128, the last epoch's weights.
    ``seconds`` ends it earlier, for comparisons at equal time. ``name`` keeps the trainings of one job apart.
    """
    images, labels = pictures.train
    per_epoch = len(images) // BATCH
    if per_epoch < 1:
        raise ValueError(f"pictures must hold at least {BATCH} to train on, got {len(images)}")
    total = epochs * per_epoch
    warm = max(1, total // 10)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1_000_003 * job.seed + epoch)
        order = torch.randperm(len(images), generator=generator)[: per_epoch * BATCH]
        for chosen in torch.split(order, BATCH):
            yield augmented(images[chosen], generator), labels[chosen]

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(module(normalised(batch[0])), batch[1], label_smoothing=0.1)

    history = train.fit(
        model,
        step,
        batches,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_then_cosine(warm, total)),
        schedule_every="step",
        epochs=epochs,
        seconds=seconds,
        folder=job.folder / name,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        strategy=job.strategy,
        label=name,
    )
    return accuracy(model, pictures.test, job.device), history


def _warm_then_cosine(warm: int, total: int) -> Callable[[int], float]:
    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - warm) / max(1, total - warm)))))

    return rate


@torch.no_grad()
def accuracy(model: nn.Module, test: tuple[Tensor, Tensor], device: str = "cpu") -> float:
    """Per cent of the pictures whose class has the highest logit."""
    model = model.to(device).eval()
    right = 0
    for images, labels in zip(torch.split(test[0], 500), torch.split(test[1], 500), strict=True):
        right += int((model(normalised(images.to(device))).argmax(1).cpu() == labels).sum())
    return 100 * right / len(test[1])


def macs(model: nn.Module, size: int | tuple[int, int] = 224, channels: int = 3) -> int:
    """Multiply-adds of one picture's forward pass, as papers count them: half of the floating-point operations."""
    height, width = (size, size) if isinstance(size, int) else size
    parameter = next(model.parameters())
    picture = torch.zeros(1, channels, height, width, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    model.eval()
    # The counter sees attention only where it is made of plain products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        counted = measure.count_flops(lambda: model(picture))
    model.train(training)
    return counted // 2


def inference(model: nn.Module, pictures: Tensor, *, compiled: bool = False) -> Callable[[], Tensor]:
    """A forward pass in evaluation, to be timed; ``compiled`` by torch.compile, at the first call."""
    model = model.eval().to(pictures)
    call = torch.compile(model) if compiled else model

    def run() -> Tensor:
        with torch.inference_mode():
            return call(pictures)  # type: ignore[no-any-return]

    return run


def training_step(model: nn.Module, pictures: Tensor) -> Callable[[], None]:
    """A forward and a backward pass of cross entropy, to be timed."""
    model = model.train().to(pictures)
    labels = torch.zeros(len(pictures), dtype=torch.long, device=pictures.device)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(pictures), labels).backward()  # type: ignore[no-untyped-call]

    return run


def baseline(
    kind: Kind, target: float, *, size: int = 32, classes: int = 10, cost: Callable[[nn.Module], float] | None = None
) -> nn.Module:
    """The network of a known kind whose multiply-adds at ``size`` pixels, or whose ``cost``, are nearest to ``target``.

    Depths and shape are fixed for small pictures; only the width is chosen. ``deit``: a plain vision transformer on
    patches of 4; ``swin``: windows of 4 on patches of 2; ``convnext``; ``resnet``: basic blocks with a 3 x 3 stem.
    """
    return of_cost(lambda width: _build(kind, width, size, classes), target, size=size, cost=cost)


def of_cost(
    build: Callable[[int], nn.Module],
    target: float,
    *,
    size: int = 32,
    cost: Callable[[nn.Module], float] | None = None,
) -> nn.Module:
    """The network ``build(width)``, widths from 1 on, whose multiply-adds (or ``cost``) are nearest to ``target``."""

    @functools.cache  # a cost may be measured, and would not be the same twice
    def of(width: int) -> float:
        model = build(width)
        return macs(model, size) if cost is None else cost(model)

    low, high = 1, 2  # the cost grows with the width
    while of(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle) < target else (low, middle)
    return build(min((low, high), key=lambda width: abs(of(width) - target)))


def _build(kind: Kind, width: int, size: int, classes: int) -> nn.Module:
    import timm.models

    models: Any = timm.models
    network: Any
    if kind == "deit":
        network = models.VisionTransformer(
            img_size=size, patch_size=4, embed_dim=8 * width, depth=6, num_heads=4, num_classes=classes
        )
    elif kind == "swin":
        network = models.SwinTransformer(
            img_size=size, patch_size=2, window_size=4, embed_dim=2 * width, depths=(2, 2, 4), num_heads=(2, 4, 8),
            num_classes=classes,
        )  # fmt: skip
    elif kind == "convnext":
        dims = tuple(4 * width * 2**stage for stage in range(4))
        network = models.ConvNeXt(depths=(2, 2, 6, 2), dims=dims, patch_size=2, num_classes=classes)
    elif kind == "resnet":
        channels = tuple(width * 2**stage for stage in range(4))
        block = models.resnet.BasicBlock
        network = models.ResNet(block, (2, 2, 2, 2), channels=channels, num_classes=classes)
        # For small pictures the stem keeps the resolution.
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        raise ValueError(f"kind must be one of deit, swin, convnext, resnet, got {kind!r}")
    return network  # type: ignore[no-any-return]
