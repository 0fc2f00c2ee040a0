"""The claims of WaveMix: memory of a training step, accuracy at equal parameters and time, accuracy of few parameters."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import data, images, measure, train
from everyformer.lab.measure import count_parameters
from everyformer.papers.wavemix.model import WaveMix

LITE: dict[str, Any] = {"dim": 16, "depth": 4, "levels": 1, "stem": "strided", "stride": 1}
# Passes over the pictures. The convolutions of a WaveMix cost more seconds than their share, so the vision transformer is
# given more passes, enough to train at least as many seconds: it is the one that gains from the rounding.
EPOCHS = {"smoke": (1, 2), "cpu": (2, 6), "paper": (60, 180)}
DIGIT_EPOCHS = {"smoke": 2, "cpu": 4, "paper": 30}


def memory(job: Job) -> Measurement:
    """Peak memory of one training step, beside a vision transformer of as many parameters on patches of 2 x 2."""
    batches = [2, 4] if job.scale == "smoke" else [8, 16, 32, 64]
    torch.manual_seed(job.seed)
    ours = WaveMix(10, **LITE).to(job.device)
    peers = {"ViT": vit(count_parameters(ours), 2).to(job.device)}
    peers["ViT, attention matrices kept"] = vit(count_parameters(ours), 2, fused=False).to(job.device)
    peers["ResNet"] = resnet(count_parameters(ours)).to(job.device)
    found: dict[str, list[float]] = {}
    extras: dict[str, float] = {}
    for name, model in {"WaveMix": ours, **peers}.items():
        extras[f"{name}: parameters"] = float(count_parameters(model))
        found[name] = [measure.peak_extra_bytes(_step(model, batch, job), job.device) / 2**20 for batch in batches]
        extras[f"{name}: peak of a training step at batch {batches[-1]} (MiB)"] = found[name][-1]
        extras[f"{name}: kept for the backward pass (MiB)"] = _kept(model, batches[-1], job) / 2**20
    panel = Panel(
        "Peak memory of a training step", "pictures of 32 x 32 in a batch", "MiB",
        {name: ([float(batch) for batch in batches], values) for name, values in found.items()},
    )  # fmt: skip
    return Measurement(found["WaveMix"][-1], found["ViT"][-1], extras, (panel,))


def cifar10(job: Job) -> Measurement:
    """Test accuracy after one recipe at equal parameters, the vision transformer training at least as long."""
    pictures = _made_up() if job.scale == "smoke" else images.cifar10(full=job.scale == "paper")
    epochs, more = EPOCHS[job.scale]
    torch.manual_seed(job.seed)
    ours = WaveMix(10, **LITE)
    candidates = {
        "WaveMix": (ours, epochs),
        "ViT": (vit(count_parameters(ours), 4), more),
        "ResNet": (resnet(count_parameters(ours)), epochs),
    }
    accuracy: dict[str, float] = {}
    extras: dict[str, float] = {}
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for name, (model, passes) in candidates.items():
        accuracy[name], history = images.train_classifier(model, pictures, job, name=name.lower(), epochs=passes)
        extras |= {
            f"{name}: accuracy": accuracy[name],
            f"{name}: parameters": float(count_parameters(model)),
            f"{name}: passes over the pictures": float(passes),
            f"{name}: seconds": history.seconds,
        }
        lines[name] = ([history.seconds * (i + 1) / passes for i in range(passes)], list(history.train))
    panel = Panel("Training", "seconds", "loss", lines)
    return Measurement(accuracy["WaveMix"], accuracy["ViT"], extras, (panel,))


def few_parameters(job: Job) -> Measurement:
    """Accuracy on digits of the smallest published network, beside it with learned upsampling (4 x the parameters)."""
    pixels, labels = data.digits("mnist_500" if job.scale == "smoke" else "mnist_test")
    if job.scale == "paper":
        more, theirs = data.digits("mnist_train")
        pixels, labels = torch.cat([more, pixels]), torch.cat([theirs, labels])
    pixels = (pixels.float().unsqueeze(1) / 255 - 0.1307) / 0.3081
    count = {"smoke": 100, "cpu": 2_000, "paper": 10_000}[job.scale]
    learn, test = (pixels[:-count], labels[:-count]), (pixels[-count:], labels[-count:])
    accuracy: dict[str, float] = {}
    extras: dict[str, float] = {}
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for upsample in ("bilinear", "transposed"):
        torch.manual_seed(job.seed)
        options: dict[str, Any] = {"dim": 8, "depth": 10, "levels": 1, "stem": "strided", "stride": 1, "in_chans": 1}
        model = WaveMix(10, **options, upsample=upsample)
        history = _learn_digits(model, learn, job, upsample)
        accuracy[upsample] = _right(model, test, job.device)
        extras |= {
            f"{upsample}: accuracy": accuracy[upsample],
            f"{upsample}: parameters": float(count_parameters(model)),
            f"{upsample}: seconds": history.seconds,
        }
        lines[upsample] = ([float(i + 1) for i in range(len(history.train))], list(history.train))
    panel = Panel("Training", "pass over the digits", "loss", lines)
    return Measurement(accuracy["bilinear"], accuracy["transposed"], extras, (panel,))


def plan_memory() -> Plan:
    """The 28M network of the paper's main results at 256 pixels, one training step of a batch of 64."""
    return _plan(
        "memory", {"dim": 192, "depth": 16, "levels": 3}, 1000, 256, "the paper's GPUs and batches differ by task"
    )


def plan_cifar10() -> Plan:
    """The published network of 144 channels and 7 blocks, trained on all of CIFAR-10."""
    size = {"dim": 144, "depth": 7, "levels": 1, "stem": "strided", "stride": 1}
    notes = (
        "--scale paper trains the network of 16 channels on all of CIFAR-10; these are the costs of the published one"
    )
    return _plan("cifar10", size, 10, 32, notes)


def plan_few_parameters() -> Plan:
    """The smallest network on all digits."""
    size = {"dim": 8, "depth": 10, "levels": 1, "stem": "strided", "stride": 1, "in_chans": 1, "upsample": "bilinear"}
    return _plan("few_parameters", size, 10, 28, "60,000 digits to train on; the authors' augmentation is not known")


def vit(target: int, patch: int, fused: bool = True) -> nn.Module:
    """A vision transformer of 4 layers for pictures of 32 x 32 whose parameters are nearest to ``target``.

    ``fused=False``: attention by two matrix products, as networks of the paper's time computed it.
    """
    from timm.models import VisionTransformer
    from timm.models.vision_transformer import Attention

    def build(width: int) -> nn.Module:
        return VisionTransformer(
            img_size=32, patch_size=patch, embed_dim=2 * width, depth=4, num_heads=2, num_classes=10
        )

    model = _nearest(build, target)
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused_attn = fused  # type: ignore[misc]
    return model


def resnet(target: int) -> nn.Module:
    """A ResNet of four basic blocks with a stem of its first width that keeps 32 x 32, nearest to ``target``."""
    from timm.models import ResNet
    from timm.models.resnet import BasicBlock

    block: Any = BasicBlock

    def build(width: int) -> nn.Module:
        channels = tuple(width * 2**stage for stage in range(4))
        model: Any = ResNet(
            block, (1, 1, 1, 1), channels=channels, stem_width=width // 2, stem_type="deep", num_classes=10
        )
        model.conv1[0].stride = (1, 1)
        model.maxpool = nn.Identity()
        return model  # type: ignore[no-any-return]

    return _nearest(build, target, range(2, 65, 2))


def _nearest(build: Callable[[int], nn.Module], target: int, widths: Sequence[int] = range(2, 65)) -> nn.Module:
    def count(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(width))

    above = bisect.bisect_left(widths, target, 1, len(widths) - 1, key=count)  # parameters grow with the width
    return build(min(widths[above - 1 : above + 1], key=lambda width: abs(count(width) - target)))


def _step(model: nn.Module, batch: int, job: Job) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(job.seed)
    pictures = torch.randn(batch, 3, 32, 32, generator=generator).to(job.device)
    labels = torch.zeros(batch, dtype=torch.long, device=job.device)
    weights = list(model.parameters())

    def run() -> None:
        torch.autograd.grad(F.cross_entropy(model.train()(pictures), labels), weights)

    return run


def _kept(model: nn.Module, batch: int, job: Job) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, each storage once, weights left out."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive = []  # a storage that is freed could lend its address to the next

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _step(model, batch, job)()
    return sum(storages.values())


def _made_up() -> images.Pictures:
    """The digits that come with the package, as pictures of 32 x 32 in three equal colours."""
    pixels, labels = data.digits("mnist_500")
    pictures = F.pad(pixels, (2, 2, 2, 2)).unsqueeze(1).repeat(1, 3, 1, 1)
    return images.Pictures((pictures[:400], labels[:400]), (pictures[400:], labels[400:]))


def _learn_digits(model: nn.Module, learn: tuple[Tensor, Tensor], job: Job, name: str) -> train.History:
    """AdamW at 1e-2 coming down by a cosine, batches of 64, cross-entropy, each digit as it is."""
    epochs, size = DIGIT_EPOCHS[job.scale], 64
    per_epoch = len(learn[0]) // size

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1_000_003 * job.seed + epoch)
        order = torch.randperm(len(learn[0]), generator=generator)[: per_epoch * size]
        for chosen in order.split(size):
            yield learn[0][chosen], learn[1][chosen]

    return train.fit(
        model,
        lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]),
        batches,
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.01),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch),
        schedule_every="step",
        epochs=epochs,
        folder=job.folder / name,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        strategy=job.strategy,
        label=name,
    )


@torch.no_grad()
def _right(model: nn.Module, test: tuple[Tensor, Tensor], device: str) -> float:
    """Per cent of the test digits that the model names rightly."""
    model = model.to(device).eval()
    right = sum(
        int((model(pixels.to(device)).argmax(1).cpu() == labels).sum())
        for pixels, labels in zip(test[0].split(500), test[1].split(500), strict=True)
    )
    return 100 * right / len(test[1])


def _plan(claim: str, size: dict[str, Any], classes: int, side: int, notes: str, batch: int = 64) -> Plan:
    with torch.device("meta"):
        model = WaveMix(classes, **size)
    flops = 2.0 * images.macs(model, side, size.get("in_chans", 3))
    count = count_parameters(model)
    # Weights, gradients and two moments; kept per block and position: D/4 reduced, twice D at half the size and four
    # times 2 D there, D upsampled, D normalised.
    positions = batch * (side // (1 if size.get("stem") == "strided" else 4)) ** 2
    kept = 4.0 * positions * size["dim"] * size["depth"] * (0.25 + 0.5 + 2.0 + 2.0)
    launch = f"everyformer run wavemix.{claim} --scale paper --device cuda"
    return Plan(count, 3 * flops * batch, 16.0 * count + kept, launch, f"one training step, batch {batch}; {notes}")
