"""The claims of FaViT: beside Swin of equal multiply-adds, clean and corrupted; its size, its growth and its sight."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import corruptions, data, images, measure
from everyformer.lab.growth import exponent
from everyformer.lab.measure import count_parameters
from everyformer.papers.favit.model import VARIANTS, FactorizedSelfAttention, FaViT

# A narrow network for 32 x 32 pixels: patches, windows and stages like those of the Swin it is compared with.
SMALL: dict[str, Any] = {
    "dims": (16, 32, 64),
    "depths": (1, 1, 2),
    "heads": (1, 2, 4),
    "mlp_ratios": (4, 4, 4),
    "reductions": (4, 2, 1),
    "patch": 2,
    "window": 4,
}
EPOCHS = {"smoke": 1, "cpu": 3, "paper": 300}
TRAIN, TEST = 10_000, 3_000  # pictures at cpu scale
CORRUPTED = 1_500  # of the test pictures; each is corrupted in six ways and three severities
SEVERITIES = (1, 3, 5)
PUBLISHED_BATCH = 1024
WINDOW = 7
SIZES = {"smoke": (64, 96, 128), "cpu": (224, 320, 448, 640, 1024), "paper": (224, 320, 448, 640, 1024)}
SWIN = "swin_tiny_patch4_window7_224"


def accuracy(job: Job) -> Measurement:
    """Accuracy on clean test pictures; that on corrupted ones stands beside it."""
    pictures = _pictures(job)
    networks, extras, panels = _trained(job, pictures)
    found = {name: images.accuracy(network, pictures.test, job.device) for name, network in networks.items()}
    return Measurement(found["FaViT"], found["Swin"], extras, panels)


def robustness(job: Job) -> Measurement:
    """Accuracy on corrupted test pictures, the mean over kinds and severities."""
    pictures = _pictures(job)
    networks, extras, panels = _trained(job, pictures)
    kinds = list(corruptions.CORRUPTIONS)
    means, bars = {}, {}
    for name, network in networks.items():
        scores = [_corrupted_score(job, network, pictures.test, kind) for kind in kinds]
        means[name] = statistics.fmean(scores)
        bars[name] = ([float(place) for place in range(len(kinds))], scores)
        extras |= {f"accuracy on {kind}, {name}": score for kind, score in zip(kinds, scores, strict=True)}
        clean = images.accuracy(network, pictures.test, job.device)
        extras |= {f"accuracy, {name}": clean, f"accuracy kept, {name}": means[name] / clean}
    panel = Panel("Accuracy on corrupted pictures", "", "%", bars, kind="bar", ticks=kinds)
    return Measurement(means["FaViT"], means["Swin"], extras, (*panels, panel))


def parameters(job: Job) -> Measurement:
    """Parameters of B2 and Swin-T; those of the other variants and all multiply-adds at 224 pixels beside."""
    counted, extras = {}, {}
    for name in (*VARIANTS, SWIN):
        model = timm.create_model(name)
        counted[name] = count_parameters(model) / 1e6
        extras[f"parameters, {name} (M)"] = counted[name]
        extras[f"multiply-adds, {name} (G)"] = images.macs(model) / 1e9
    places = [float(place) for place in range(len(counted))]
    ticks = [*VARIANTS, "swin_tiny"]
    panel = Panel("Parameters", "", "M", {"parameters": (places, list(counted.values()))}, kind="bar", ticks=ticks)
    return Measurement(counted["favit_b2"], counted[SWIN], extras, (panel,))


def resolution(job: Job) -> Measurement:
    """Time and multiply-adds of the attention of all of B2's blocks, for three kinds of attention, against pixels."""
    torch.manual_seed(job.seed)
    sizes = SIZES[job.scale]
    kinds = ("FaSA", "windows", "global")
    seconds: dict[str, list[float]] = {kind: [0.0] * len(sizes) for kind in kinds}
    macs: dict[str, list[float]] = {kind: [0.0] * len(sizes) for kind in kinds}
    for stage, depth in enumerate(VARIANTS["favit_b2"]["depths"]):
        layers = {kind: layer.eval().to(job.device) for kind, layer in attention(stage).items()}
        for place, size in enumerate(sizes):
            side = math.ceil(size / (4 * 2**stage))
            x = torch.randn(1, side, side, VARIANTS["favit_b2"]["dims"][stage], device=job.device)
            calls = {kind: _call(layer, x) for kind, layer in layers.items()}
            # Global attention alone takes most of the time: on large maps once is enough.
            large = side**2 > 4096
            full = measure.side_by_side(
                {"global": calls.pop("global")}, 1 if large else 3, 0 if large else 1, job.device
            )
            times = {**measure.side_by_side(calls, 3 if job.scale == "smoke" else 5, 1, job.device), **full}
            for kind in kinds:
                seconds[kind][place] += depth * measure.median(times[kind])
                macs[kind][place] += depth * _macs(layers[kind], x)
    pixels = [float(size**2) for size in sizes]
    exponents = {kind: exponent(pixels, seconds[kind]) for kind in kinds}
    extras = {f"exponent of time, {kind}": exponents[kind] for kind in kinds}
    extras |= {f"exponent of multiply-adds, {kind}": exponent(pixels, macs[kind]) for kind in kinds}
    for place, size in enumerate(sizes):
        extras |= {f"milliseconds at {size} pixels, {kind}": 1000 * seconds[kind][place] for kind in kinds}
        extras |= {f"multiply-adds at {size} pixels, {kind} (G)": macs[kind][place] / 1e9 for kind in kinds}
    panels = (
        _growth("Time of all attention layers", "seconds", pixels, seconds),
        _growth("Multiply-adds of all attention layers", "", pixels, macs),
    )
    return Measurement(exponents["FaSA"], exponents["global"], extras, panels)


def receptive_field(job: Job) -> Measurement:
    """The gradient of the centre of each stage's map with respect to the picture, with random weights."""
    torch.manual_seed(job.seed)
    name, size = ("favit_b0", 224) if job.scale == "smoke" else ("favit_b2", 448)
    networks: dict[str, Any] = {"FaViT": timm.create_model(name), "Swin": timm.create_model(SWIN, img_size=size)}
    stages: dict[str, list[nn.Module]] = {
        "FaViT": list(networks["FaViT"].stages),
        "Swin": [nn.Sequential(networks["Swin"].patch_embed, networks["Swin"].layers[0]), *networks["Swin"].layers[1:]],
    }
    picture = torch.randn(1, 3, size, size)
    shares: dict[str, tuple[list[float], list[float]]] = {}
    panels = []
    for name, parts in stages.items():
        found = [
            sight(nn.Sequential(*parts[: end + 1]).to(job.device).eval(), picture.to(job.device), name == "Swin")
            for end in range(len(parts))
        ]
        shares[name] = ([1.0, 2.0, 3.0, 4.0], [100 * float((gradient > 0).double().mean()) for gradient in found])
        panels.append(_sight_panel(name, found[0]))
    extras = {
        f"pixels seen after stage {stage:.0f}, {name} (%)": share
        for name, line in shares.items()
        for stage, share in zip(*line, strict=True)
    }
    panels.append(Panel("Pixels that the centre depends on", "stage", "%", shares))
    return Measurement(shares["FaViT"][1][0], shares["Swin"][1][0], extras, tuple(panels))


def sight(network: nn.Module, picture: Tensor, channels_last: bool = False) -> Tensor:
    """The size of the gradient of the map's centre with respect to each pixel: (height, width)."""
    picture = picture.detach().requires_grad_()
    found = network(picture)
    found = found if channels_last else found.permute(0, 2, 3, 1)
    centre = found[0, found.shape[1] // 2, found.shape[2] // 2]
    # A sum over the channels would be constant behind a layer norm.
    (gradient,) = torch.autograd.grad((centre * torch.randn_like(centre)).sum(), picture)
    return gradient[0].abs().sum(0).cpu()


class Windows(nn.Module):
    """Swin's attention in windows of 7 x 7, of a map with channels last."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = WindowAttention(dim, heads, window_size=WINDOW)

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same size, padded to whole windows in between."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        windows = window_partition(x, (WINDOW, WINDOW)).flatten(1, 2)
        mixed = self.attention(windows).unflatten(1, (WINDOW, WINDOW))
        return window_reverse(mixed, (WINDOW, WINDOW), x.shape[1], x.shape[2])[:, :height, :width]


class Global(nn.Module):
    """Attention of all tokens to all, of a map with channels last."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map."""
        return self.attention(x.flatten(1, 2)).view_as(x)  # type: ignore[no-any-return]


def attention(stage: int) -> dict[str, nn.Module]:
    """The attention of a block of B2 in one of its stages, and two others of equal width and heads."""
    dim, heads, reduction = VARIANTS["favit_b2"]["dims"][stage], 2**stage, 8 // 2**stage
    return {
        "FaSA": FactorizedSelfAttention(dim, heads, reduction, WINDOW),
        "windows": Windows(dim, heads),
        "global": Global(dim, heads),
    }


def _call(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return layer(x)  # type: ignore[no-any-return]

    return run


def _macs(layer: nn.Module, x: Tensor) -> int:
    """Counted without data, where attention is made of plain products and all of them are seen."""
    state = {name: tensor.to("meta") for name, tensor in layer.state_dict().items()}
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        return measure.count_flops(lambda: torch.func.functional_call(layer, state, (x.to("meta"),))) // 2


def _growth(title: str, unit: str, pixels: list[float], values: Mapping[str, list[float]]) -> Panel:
    lines = {kind: (pixels, line) for kind, line in values.items()}
    return Panel(title, "pixels", unit, lines, log_x=True, log_y=True)


def _sight_panel(name: str, gradient: Tensor) -> Panel:
    """Powers of ten below the largest gradient, down to six, on squares of 8 x 8 pixels."""
    squares = F.max_pool2d(gradient[None, None], 8)[0, 0]
    grid = (squares / squares.max()).clamp(min=1e-6).log10()
    return Panel(f"Gradient of the first stage's centre, {name} (log)", "", "", kind="heat", grid=grid.tolist())


def _pictures(job: Job) -> images.Pictures:
    if job.scale == "paper":
        return images.cifar10(full=True)
    if job.scale == "cpu":
        return images.cifar10().first(TRAIN, TEST)
    digits, labels = data.digits("mnist_500")
    pictures = F.pad(digits, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1).contiguous()
    return images.Pictures((pictures[:384], labels[:384]), (pictures[384:], labels[384:]))


def _networks(job: Job) -> dict[str, nn.Module]:
    torch.manual_seed(job.seed)
    if job.scale == "paper":
        published = {"FaViT": timm.create_model("favit_b2", num_classes=10)}
        published["Swin"] = timm.create_model(SWIN, num_classes=10)
        # They are made for 224 x 224 pixels.
        return {name: nn.Sequential(nn.Upsample(size=224, mode="bilinear"), net) for name, net in published.items()}
    small = FaViT(num_classes=10, **SMALL)
    return {"FaViT": small, "Swin": images.baseline("swin", images.macs(small, 32))}


def _trained(job: Job, pictures: images.Pictures) -> tuple[dict[str, nn.Module], dict[str, float], tuple[Panel, ...]]:
    """FaViT and Swin, trained by one recipe on the same pictures in the same order; figures; their loss."""
    networks = _networks(job)
    extras: dict[str, float] = {}
    lines = {}
    for name, network in networks.items():
        _, history = images.train_classifier(network, pictures, job, name=name, epochs=EPOCHS[job.scale])
        extras[f"parameters, {name}"] = float(count_parameters(network))
        extras[f"multiply-adds, {name}"] = float(images.macs(network, 32))
        extras[f"training seconds, {name}"] = history.seconds
        lines[name] = ([float(epoch + 1) for epoch in range(len(history.train))], list(history.train))
    return networks, extras, (Panel("Training loss", "epoch", "cross entropy", lines),)


def _corrupted_score(job: Job, network: nn.Module, test: tuple[Tensor, Tensor], kind: str) -> float:
    """Accuracy over the severities; both networks of a job see the same pictures."""
    pictures, labels = (tensor if job.scale == "paper" else tensor[:CORRUPTED] for tensor in test)
    changed = [corruptions.corrupted(pictures, kind, severity, job.seed) for severity in SEVERITIES]
    return statistics.fmean(images.accuracy(network, (pictures, labels), job.device) for pictures in changed)


def _plan(claim: str, notes: str) -> Plan:
    with torch.device("meta"):
        model = FaViT(**VARIANTS["favit_b2"])
    count = count_parameters(model)
    # Forward and backward take three forward passes; about thirty maps of the first width stay for the backward pass.
    flops = 6.0 * images.macs(model) * PUBLISHED_BATCH
    activations = PUBLISHED_BATCH * 30 * 56 * 56 * model.feature_info[0]["num_chs"] * 4
    launch = f"everyformer run favit.{claim} --scale paper --device cuda"
    step = f"one training step of FaViT-B2 at batch {PUBLISHED_BATCH} and 224 pixels; "
    return Plan(count, flops, 16 * count + activations, launch, step + notes)


def plan_accuracy() -> Plan:
    """B2 against Swin-T."""
    return _plan("accuracy", "the run trains 300 epochs on the whole of CIFAR-10, enlarged to 224 pixels")


def plan_robustness() -> Plan:
    """B2 against Swin-T."""
    return _plan("robustness", "the run trains as for favit.accuracy and tests on our own corruptions")


def plan_parameters() -> Plan:
    """B2 and Swin-T, counted."""
    return _plan("parameters", "the claim trains nothing")


def plan_resolution() -> Plan:
    """B2's attention, timed."""
    return _plan("resolution", "the claim trains nothing")


def plan_receptive_field() -> Plan:
    """B2 and Swin-T with random weights."""
    return _plan("receptive_field", "the claim trains nothing")
