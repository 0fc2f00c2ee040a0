"""The claims of ViT-ResNAS: searched and random networks, one made by hand, Swin; the skip, one pass, and the cost.

All trainings, of super-networks too, go through ``lab.images.train_classifier``: same pictures, same recipe.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import data, images, measure, train
from everyformer.lab.measure import count_parameters
from everyformer.papers.vit_resnas.model import VARIANTS, Definition, Stage, ViTResNAS, define, macs, stripped
from everyformer.papers.vit_resnas.search import Found, search
from everyformer.papers.vit_resnas.supernet import SPACES, Space, StageSpace, SuperNet

# For 32 x 32 pixels: 8 x 8 and 4 x 4 patches.
SMALL_SPACE = Space(
    (
        StageSpace((48, 40, 32, 24), (6, 5, 4, 3, 2), 8, (192, 160, 128, 96, 64), 3, (1,)),
        StageSpace((96, 80, 64, 48), (6, 5, 4, 3, 2), 16, (384, 320, 256, 192, 128), 3, (1,)),
    ),
    num_classes=10,
    img_size=32,
    patch=4,
    middle=None,
)
SMALL_HAND_MADE = (Stage(32, 8, [(4, 128)] * 3), Stage(64, 16, [(4, 256)] * 3))
THREE_STAGES = (Stage(32, 8, [(4, 128)] * 2), Stage(64, 16, [(4, 256)] * 2), Stage(128, 32, [(4, 512)] * 2))
SHARE = {"smoke": 16, "cpu": 32, "paper": 64}  # examples of a batch for one architecture
PUBLISHED_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a search has at its disposal; ``size`` is the side to which the pictures are enlarged."""

    space: Space
    hand_made: Definition
    pictures: images.Pictures
    held_out: tuple[Tensor, Tensor]
    size: int
    super_epochs: int
    epochs: int
    sizes: dict[str, int]


def setting(job: Job) -> Setting:
    """Digits at smoke scale; 4,096 CIFAR-10 pictures and 1,000 held out; all of CIFAR-10 and the published space."""
    if job.scale == "paper":
        whole = images.cifar10(full=True)
        shown, held_out = images.Pictures(_part(whole, 0, 47_500), whole.test), _part(whole, 47_500, 50_000)
        space = dataclasses.replace(SPACES["tiny"], num_classes=10)
        hand_made = define(VARIANTS["vit_res_tiny"], 10)
        return Setting(space, hand_made, shown, held_out, 224, 120, 300, {})
    if job.scale == "cpu":
        whole, held, epochs = images.cifar10(), 1000, (5, 2)
        sizes = {"initial": 24, "rounds": 4, "parents": 8, "mutations": 8, "crossovers": 8}
        shown = whole.first(4096, 3000)
    else:
        whole, held, epochs = _digits(), 128, (1, 1)
        sizes = {"initial": 4, "rounds": 2, "parents": 2, "mutations": 1, "crossovers": 1}
        shown = whole.first(256, 100)
    start = len(shown.train[0])
    held_out = _part(whole, start, start + held)
    return Setting(SMALL_SPACE, define(SMALL_HAND_MADE, 10, None), shown, held_out, 32, *epochs, sizes)


def _part(pictures: images.Pictures, first: int, last: int) -> tuple[Tensor, Tensor]:
    return pictures.train[0][first:last], pictures.train[1][first:last]


def _digits() -> images.Pictures:
    digits, labels = data.digits("mnist_500")
    padded = F.pad(digits, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1).contiguous()
    return images.Pictures((padded[:400], labels[:400]), (padded[400:], labels[400:]))


def enlarged(network: nn.Module, size: int) -> nn.Module:
    """The network on pictures of 32 pixels that are enlarged to ``size``."""
    return network if size == 32 else nn.Sequential(nn.Upsample(size=size, mode="bilinear"), network)


class WarmedUp(nn.Module):
    """A super-network that begins its epochs by itself, counted in its state so that a training can be interrupted."""

    steps: Tensor

    def __init__(self, supernet: SuperNet, per_epoch: int) -> None:
        super().__init__()
        self.supernet = supernet
        self.per_epoch = per_epoch
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to logits."""
        if self.training:
            epoch, step = divmod(int(self.steps), self.per_epoch)
            if step == 0:
                self.supernet.start_epoch(epoch)
            self.steps += 1
        return self.supernet(x)  # type: ignore[no-any-return]


def trained_supernet(job: Job, using: Setting) -> tuple[SuperNet, train.History]:
    """A super-network, its warm-up over the first quarter of the training."""
    torch.manual_seed(job.seed)
    supernet = SuperNet(using.space, examples=SHARE[job.scale], warm_up=using.super_epochs // 4)
    per_epoch = len(using.pictures.train[0]) // images.BATCH
    model = enlarged(WarmedUp(supernet, per_epoch), using.size)
    _, history = images.train_classifier(model, using.pictures, job, name="super-network", epochs=using.super_epochs)
    return supernet, history


def held_out_accuracy(held_out: tuple[Tensor, Tensor], size: int, device: str, network: nn.Module) -> float:
    """Accuracy in per cent with inherited weights on the pictures held out."""
    return images.accuracy(enlarged(network, size), held_out, device)


def searched(job: Job, supernet: SuperNet, using: Setting, kind: str) -> Found:
    """Evolution, or random search with as many evaluations, kept in the job's folder."""
    limit = supernet.macs(using.hand_made)
    sizes: dict[str, Any] = dict(using.sizes)
    if kind == "random":
        published = {"initial": 500, "rounds": 20, "mutations": 75, "crossovers": 75} | sizes
        new = published["mutations"] + published["crossovers"]
        sizes = {"initial": published["initial"] + (published["rounds"] - 1) * new, "rounds": 1}
    # At smoke scale starting processes would take longer than the work; a GPU is not shared.
    workers = None if job.scale == "cpu" and job.device == "cpu" else 0
    evaluate = functools.partial(held_out_accuracy, using.held_out, using.size, job.device)
    file = job.folder / f"{kind}.json"
    return search(supernet, evaluate, limit, seed=job.seed, resume=file, workers=workers, **sizes)


def retrained(job: Job, using: Setting, network: Definition, name: str, epochs: int) -> tuple[float, train.History]:
    """Test accuracy of a network trained from scratch."""
    torch.manual_seed(job.seed)
    space = using.space
    model = ViTResNAS(stripped(network), img_size=space.img_size, patch=space.patch)
    return images.train_classifier(enlarged(model, using.size), using.pictures, job, name=name, epochs=epochs)


def tiny(job: Job) -> Measurement:
    """The winner of an evolution and the network made by hand, both trained from scratch."""
    using = setting(job)
    supernet, super_history = trained_supernet(job, using)
    found = searched(job, supernet, using, "evolution")
    networks = {"searched": found.best.architecture, "made by hand": using.hand_made}
    scores, histories, extras = {}, {"super-network": super_history}, {}
    for name, network in networks.items():
        # Twice as long as in the other claim: two networks instead of eight.
        scores[name], histories[name] = retrained(job, using, network, name.replace(" ", "_"), 2 * using.epochs)
        extras[f"multiply-adds, {name}"] = float(supernet.macs(network))
    extras |= {"best held-out accuracy": found.best.score, "evaluations": float(len(found.history))}
    panels = (_front({"evolution": found}), _losses(histories))
    return Measurement(scores["searched"], scores["made by hand"], extras, panels)


def evolution(job: Job) -> Measurement:
    """Evolution and random search on one super-network; beside it, what their winners and others give from scratch."""
    using = setting(job)
    supernet, _ = trained_supernet(job, using)
    found = {kind: searched(job, supernet, using, kind) for kind in ("evolution", "random")}
    best = {kind: one.best.score for kind, one in found.items()}
    # Does inherited accuracy rank truly? Eight networks: the winners, and random ones from the best to the worst.
    ranked = sorted(found["random"].history, key=lambda one: -one.score)
    count = 2 if job.scale == "smoke" else 6
    chosen = [found["evolution"].best, *(ranked[place * (len(ranked) - 1) // count] for place in range(count + 1))]
    scores = [
        retrained(job, using, one.architecture, f"network_{place}", using.epochs)[0] for place, one in enumerate(chosen)
    ]
    extras = {
        "test accuracy from scratch, evolution": scores[0],
        "test accuracy from scratch, random search": scores[1],
        "Kendall rank correlation, inherited and from scratch": kendall([one.score for one in chosen], scores),
        "evaluations of each": float(len(found["random"].history)),
        "held-out accuracy of the whole super-network": held_out_accuracy(
            using.held_out, using.size, job.device, supernet.network
        ),
    }
    pairs = sorted(zip([one.score for one in chosen], scores, strict=True))
    ranks = Panel(
        "Eight networks", "held-out accuracy, inherited (%)", "test accuracy, from scratch (%)",
        {"networks": ([a for a, _ in pairs], [b for _, b in pairs])},
    )  # fmt: skip
    return Measurement(best["evolution"], best["random"], extras, (_progress(found), _front(found), ranks))


def residual(job: Job) -> Measurement:
    """One network with and without the skips around its reductions."""
    networks = {}
    for name, skip in (("residual", True), ("plain", False)):
        torch.manual_seed(job.seed)
        networks[name] = _published("vit_resnas_tiny", residual=skip) if job.scale == "paper" else _small(residual=skip)
    return _compare(job, networks)


def medium(job: Job) -> Measurement:
    """A network of three stages and a Swin of the nearest multiply-adds."""
    torch.manual_seed(job.seed)
    swin: nn.Module
    if job.scale == "paper":
        ours = _published("vit_resnas_medium")
        swin = enlarged(timm.create_model("swin_tiny_patch4_window7_224", num_classes=10), 224)
    else:
        ours = _small()
        swin = images.baseline("swin", images.macs(ours, 32))
    return _compare(job, {"ViT-ResNAS": ours, "Swin": swin})


def one_pass(job: Job) -> Measurement:
    """A training step of four architectures in one pass, and of each by itself on a quarter of the batch."""
    torch.manual_seed(job.seed)
    space = dataclasses.replace(SPACES["tiny"], middle=None) if job.scale == "paper" else SMALL_SPACE
    count, share = 4, {"smoke": 2, "cpu": 16, "paper": 64}[job.scale]
    supernet = SuperNet(space, share).to(job.device)
    pictures = torch.randn(count * share, 3, space.img_size, space.img_size, device=job.device)
    labels = torch.randint(space.num_classes, (count * share,), device=job.device)
    networks = supernet.draw(count)

    def together() -> None:
        supernet.zero_grad()
        F.cross_entropy(supernet(pictures, networks), labels).backward()

    def apart(extract: bool) -> None:
        supernet.zero_grad()
        for index, network in enumerate(networks):
            x, y = pictures[index::count], labels[index::count]
            logits = supernet.extract(network)(x) if extract else supernet(x, [network])
            (F.cross_entropy(logits, y) / count).backward()

    def plain() -> None:
        supernet.zero_grad()
        F.cross_entropy(supernet.network(pictures), labels).backward()

    together()
    gradients = {parameter: parameter.grad.clone() for parameter in supernet.parameters() if parameter.grad is not None}
    apart(False)
    # Relative to the largest entry of all: some parameters' gradients are as small as the rounding.
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    difference = max(float((parameter.grad - gradient).abs().max()) for parameter, gradient in gradients.items())  # type: ignore[operator]
    steps: dict[str, Callable[[], None]] = {
        "one pass": together,
        "separate passes": functools.partial(apart, False),
        "separate passes, extracted networks": functools.partial(apart, True),
        "plain step of the whole network": plain,
    }
    times = measure.side_by_side(steps, rounds=1 if job.scale == "smoke" else 15, device=job.device)
    found = {name: 1000 * measure.median(values) for name, values in times.items()}
    extras = {f"ms, {name}": value for name, value in found.items()}
    extras["one pass / plain step"] = found["one pass"] / found["plain step of the whole network"]
    extras["largest difference of gradients, relative"] = difference / largest
    return Measurement(
        found["one pass"], found["separate passes"], extras, (_bars("Time of a training step", "ms", found),)
    )


def cost(job: Job) -> Measurement:
    """Multiply-adds by the count that bounds the search, DeiT-B's as measured; parameters beside."""
    counted, extras = {}, {}
    for name, stages in VARIANTS.items():
        with torch.device("meta"):
            network = ViTResNAS(stages=stages)
        counted[name] = macs(network.definition) / 1e9
        extras[f"parameters, {name}"] = float(count_parameters(network))
        extras[f"multiply-adds as measured, {name}"] = images.macs(network) / 1e9
    with torch.device("meta"):
        counted["DeiT-B"] = images.macs(timm.create_model("deit_base_patch16_224")) / 1e9
    panel = _bars("Multiply-adds at 224 pixels", "G", counted)
    return Measurement(
        counted["vit_resnas_small"],
        counted["DeiT-B"],
        {**extras, **{f"multiply-adds, {name}": value for name, value in counted.items()}},
        (panel,),
    )


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-a: concordant less discordant pairs, over all pairs."""

    def sign(value: float) -> int:
        return (value > 0) - (value < 0)

    pairs = list(itertools.combinations(range(len(first)), 2))
    return sum(sign(first[i] - first[j]) * sign(second[i] - second[j]) for i, j in pairs) / len(pairs)


def _small(**options: Any) -> ViTResNAS:
    return ViTResNAS(stages=THREE_STAGES, middle=None, num_classes=10, img_size=32, patch=4, **options)


def _published(name: str, **options: Any) -> nn.Module:
    return enlarged(ViTResNAS(stages=VARIANTS[name], num_classes=10, **options), 224)


def _compare(job: Job, networks: dict[str, nn.Module]) -> Measurement:
    """Both trained by one recipe on the same pictures in the same order."""
    pictures = _digits() if job.scale == "smoke" else images.cifar10(full=job.scale == "paper")
    epochs = {"smoke": 1, "cpu": 4, "paper": 300}[job.scale]
    scores, extras, histories = {}, {}, {}
    for name, network in networks.items():
        extras[f"parameters, {name}"] = float(count_parameters(network))
        extras[f"multiply-adds, {name}"] = float(images.macs(network, 32))
        scores[name], histories[name] = images.train_classifier(network, pictures, job, name=name, epochs=epochs)
    method, baseline = scores.values()
    return Measurement(method, baseline, extras, (_losses(histories),))


def _losses(histories: dict[str, train.History]) -> Panel:
    lines = {name: ([float(epoch) for epoch in range(len(run.train))], run.train) for name, run in histories.items()}
    return Panel("Training loss", "epoch", "cross entropy", lines)


def _progress(found: dict[str, Found]) -> Panel:
    lines = {}
    for kind, one in found.items():
        best = list(itertools.accumulate((candidate.score for candidate in one.history), max))
        lines[kind] = ([float(number) for number in range(1, len(best) + 1)], best)
    return Panel("Best so far", "evaluations", "held-out accuracy (%)", lines)


def _front(found: dict[str, Found]) -> Panel:
    lines = {
        kind: ([candidate.macs / 1e6 for candidate in one.pareto], [candidate.score for candidate in one.pareto])
        for kind, one in found.items()
    }
    return Panel("Pareto front", "multiply-adds (M)", "held-out accuracy (%)", lines)


def _bars(title: str, unit: str, values: dict[str, float]) -> Panel:
    places = [float(place) for place in range(len(values))]
    return Panel(title, "", unit, {unit: (places, list(values.values()))}, kind="bar", ticks=list(values))


def _plan(network: ViTResNAS, claim: str, notes: str) -> Plan:
    """Figures of one training step at the published batch, measured on two pictures and scaled up."""
    held = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    def one_step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = network(torch.zeros(2, 3, 224, 224, device="meta")).sum()
        loss.backward()

    scale = PUBLISHED_BATCH / 2
    flops = measure.count_flops(one_step) * scale
    launch = f"everyformer run vit_resnas.{claim} --scale paper --device cuda --precision bf16-mixed"
    notes += "; the run here is on the whole of CIFAR-10, enlarged to 224 pixels, since ImageNet cannot be downloaded"
    return Plan(count_parameters(network), flops, 16 * count_parameters(network) + held * scale, launch, notes)


def _plan_of(name: str, claim: str) -> Plan:
    with torch.device("meta"):
        network = ViTResNAS(stages=VARIANTS[name])
    return _plan(network, claim, f"one step of {name} at batch {PUBLISHED_BATCH} and 224 pixels, 300 epochs published")


def plan_tiny() -> Plan:
    """ViT-ResNAS-Tiny."""
    return _plan_of("vit_resnas_tiny", "tiny")


def plan_small() -> Plan:
    """ViT-ResNAS-Small."""
    return _plan_of("vit_resnas_small", "cost")


def plan_medium() -> Plan:
    """ViT-ResNAS-Medium."""
    return _plan_of("vit_resnas_medium", "medium")


def plan_search() -> Plan:
    """The super-network of the tiny space."""
    with torch.device("meta"):
        supernet = SuperNet(SPACES["tiny"])
    notes = f"one step of the super-network at batch {PUBLISHED_BATCH}, 120 epochs, then 3,350 evaluations published"
    return _plan(supernet.network, "search", notes)
