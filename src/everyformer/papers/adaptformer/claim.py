"""The claims of AdaptFormer: a small ViT is pretrained as a masked autoencoder on half of the classes, tuned on the rest."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import peft
import timm
import timm.models
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import data, images, measure, train
from everyformer.papers.adaptformer.tuner import AdaptFormerConfig, VPTConfig

ViT: Any = timm.models.VisionTransformer

# A ViT for 32 x 32 pixels, and at the paper's scale one of ViT-B's width and depth.
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
BASE: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 768, "depth": 12, "num_heads": 12}
CLASSES = 5  # of ten: the others are pretrained on
MASKED = 0.75
PRETRAINING_STEPS = {"smoke": 2, "cpu": 500, "paper": 40_000}
# Training pictures and epochs of a task with many pictures, of one with few, and of the comparison of all methods.
MANY = {"smoke": (160, 1), "cpu": (2560, 5), "paper": (25_000, 100)}
FEW = {"smoke": (160, 1), "cpu": (640, 20), "paper": (640, 100)}
ALL = {"smoke": (160, 1), "cpu": (512, 10), "paper": (25_000, 100)}
RATES = (3e-4, 2e-3, 1e-2)
HELD_OUT = 0.2
FULL, LINEAR = "full fine-tuning", "linear probing"
TUNERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "AdaptFormer-1": lambda: AdaptFormerConfig(bottleneck=1, modules_to_save=["head"]),
    "AdaptFormer-8": lambda: AdaptFormerConfig(bottleneck=8, modules_to_save=["head"]),
    "AdaptFormer-64": lambda: AdaptFormerConfig(bottleneck=64, modules_to_save=["head"]),
    "VPT": lambda: VPTConfig(tokens=8, modules_to_save=["head"]),
    "LoRA": lambda: peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"]),
}
METHODS = (*TUNERS, LINEAR, FULL)
# The networks whose training step is measured, with the pictures of a batch and the times it is timed.
MEASURED = {
    "smoke": ("vit_tiny_patch16_224", 1, 1),
    "cpu": ("vit_small_patch16_224", 4, 5),
    "paper": ("vit_base_patch16_224", 128, 10),
}


class MaskedAutoencoder(nn.Module):
    """A ViT that sees a quarter of a picture's patches, and a shallow decoder of the others (arXiv 2111.06377)."""

    def __init__(self, encoder: Any, width: int = 64) -> None:
        super().__init__()
        self.encoder = encoder
        size, tokens = encoder.patch_embed.patch_size[0], encoder.patch_embed.num_patches
        self.enter = nn.Linear(encoder.embed_dim, width)
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.decoder = nn.Sequential(timm.models.vision_transformer.Block(width, 4), nn.LayerNorm(width))
        self.leave = nn.Linear(width, 3 * size**2)

    def forward(self, pictures: Tensor) -> Tensor:
        """Mean squared error of the masked patches, each patch with zero mean and unit deviation."""
        encoder, size = self.encoder, self.encoder.patch_embed.patch_size[0]
        x = encoder.patch_embed(pictures) + encoder.pos_embed[:, 1:]
        batch, tokens, dim = x.shape
        order = torch.rand(batch, tokens, device=x.device).argsort(1)
        seen, hidden = order.split([round((1 - MASKED) * tokens), round(MASKED * tokens)], dim=1)
        first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(batch, -1, -1)
        visible = x.gather(1, seen[..., None].expand(-1, -1, dim))
        coded = self.enter(encoder.norm(encoder.blocks(torch.cat([first, visible], dim=1))))[:, 1:]
        canvas = self.mask.to(coded.dtype).expand(batch, tokens, -1)
        canvas = canvas.scatter(1, seen[..., None].expand_as(coded), coded)
        found = self.leave(self.decoder(canvas + self.positions))
        patches = F.unfold(pictures, size, stride=size).transpose(1, 2)
        wanted = F.layer_norm(patches, patches.shape[-1:])
        return (found - wanted).square().mean(-1).gather(1, hidden).mean()


@dataclasses.dataclass
class Task:
    """A pretrained network, and pictures of classes that it has not seen."""

    network: Any
    pictures: images.Pictures


def _task(job: Job, count: int) -> Task:
    """Pretrain on five classes, and give ``count`` training pictures of the other five."""
    if job.scale == "smoke":
        digits, labels = data.digits("mnist_500")
        pixels = F.pad(digits, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1).contiguous()
        pictures = images.Pictures((pixels[:400], labels[:400]), (pixels[400:], labels[400:]))
    else:
        pictures = images.cifar10(full=job.scale == "paper")
    before = pictures.train[0][pictures.train[1] < CLASSES]
    sets = [(pixels[labels >= CLASSES], labels[labels >= CLASSES] - CLASSES) for pixels, labels in
            (pictures.train, pictures.test)]  # fmt: skip
    torch.manual_seed(job.seed)
    network = ViT(num_classes=CLASSES, **(BASE if job.scale == "paper" else SMALL))
    _pretrain(network, before, job)
    # As the authors do for every method: a batch norm without weights before a new head.
    head = nn.Linear(network.embed_dim, CLASSES)
    nn.init.trunc_normal_(head.weight, std=0.01)
    network.head = nn.Sequential(nn.BatchNorm1d(network.embed_dim, affine=False, eps=1e-6), head)
    return Task(network, images.Pictures(*sets).first(count, len(sets[1][0])))


def _pretrain(network: Any, pixels: Tensor, job: Job) -> None:
    def batches(epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1000 * job.seed + epoch)
        for chosen in torch.randperm(len(pixels), generator=generator).split(images.BATCH)[
            : len(pixels) // images.BATCH
        ]:
            yield images.augmented(pixels[chosen], generator)

    steps = PRETRAINING_STEPS[job.scale]
    train.fit(
        MaskedAutoencoder(network),
        lambda module, batch: module(images.normalised(batch)),
        batches,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1.5e-3, weight_decay=0.05, betas=(0.9, 0.95)),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps + 1),
        schedule_every="step",
        steps=steps,
        folder=job.folder / "pretraining",
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        strategy=job.strategy,
        label="pretraining",
    )
    network.cpu()


def tuned(method: str, network: nn.Module) -> nn.Module:
    """A copy of a pretrained network (its classifier is ``head``) of which just that is trained what a method trains."""
    network = copy.deepcopy(network)
    if method in TUNERS:
        return peft.get_peft_model(network, TUNERS[method]())  # type: ignore[no-any-return]
    if method == LINEAR:
        network.requires_grad_(False).head.requires_grad_(True)  # type: ignore[union-attr, operator]
    return network


def trained(model: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _accuracy(method: str, task: Task, job: Job, epochs: int) -> tuple[float, float]:
    """A method's accuracy in per cent on the task's test pictures, and its rate: the best on held-out training pictures."""
    pixels, labels = task.pictures.train
    kept = len(pixels) - round(HELD_OUT * len(pixels))
    selection = images.Pictures((pixels[:kept], labels[:kept]), (pixels[kept:], labels[kept:]))

    def run(pictures: images.Pictures, rate: float, name: str) -> float:
        torch.manual_seed(job.seed)
        model = tuned(method, task.network)
        options: Any = {"epochs": epochs, "learning_rate": rate, "weight_decay": 0.0}
        return images.train_classifier(model, pictures, job, name=f"{method}, {name}", **options)[0]

    best = max(RATES, key=lambda rate: run(selection, rate, f"rate {rate:g}"))
    return run(task.pictures, best, "chosen rate"), best


def _accuracies(job: Job, size: tuple[int, int], methods: tuple[str, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """The accuracy of each method on one task, and further figures."""
    count, epochs = size
    task = _task(job, count)
    found, extras = {}, {}
    for method in methods:
        found[method], extras[f"learning rate, {method}"] = _accuracy(method, task, job, epochs)
        extras[f"accuracy, {method}"] = found[method]
        extras[f"trained parameters, {method}"] = float(trained(tuned(method, task.network)))
    return found, extras


def _relative(job: Job, size: tuple[int, int]) -> Measurement:
    found, extras = _accuracies(job, size, ("AdaptFormer-64", FULL))
    return Measurement(100 * (found["AdaptFormer-64"] / found[FULL] - 1), 0.0, extras, (_bars(found),))


def _bars(found: dict[str, float]) -> Panel:
    bars = {"accuracy": ([float(index) for index in range(len(found))], list(found.values()))}
    return Panel("Accuracy on the new classes", "", "%", bars, kind="bar", ticks=list(found))


def ssv2(job: Job) -> Measurement:
    """Beside full fine-tuning where the task has many pictures."""
    return _relative(job, MANY[job.scale])


def hmdb51(job: Job) -> Measurement:
    """Beside full fine-tuning where the task has few pictures."""
    return _relative(job, FEW[job.scale])


def prompts(job: Job) -> Measurement:
    """Beside VPT; the other methods and bottlenecks as well."""
    found, extras = _accuracies(job, ALL[job.scale], METHODS)
    return Measurement(found["AdaptFormer-64"], found["VPT"], extras, (_bars(found),))


def start(job: Job) -> Measurement:
    """How far the logits of a network are from the frozen one's before any training, the worst of all options."""
    torch.manual_seed(job.seed)
    network = ViT(num_classes=10, **(BASE if job.scale == "paper" else SMALL)).eval()
    pictures = torch.randn(64, 3, 32, 32)

    def distance(config: peft.PeftConfig) -> float:
        with torch.no_grad():
            adapted = peft.get_peft_model(copy.deepcopy(network), config).eval()
            return float((adapted(pictures) - network(pictures)).abs().max())

    options = [(layernorm, sequential) for layernorm in ("none", "in", "out") for sequential in (False, True)]
    worst = max(distance(AdaptFormerConfig(layernorm=norm, sequential=order)) for norm, order in options)
    return Measurement(worst, distance(VPTConfig(tokens=8)))


def fraction(job: Job) -> Measurement:
    """The parameters that are trained, counted on ViT-B/16 with 100 classes."""
    with torch.device("meta"):
        network = timm.create_model("vit_base_patch16_224", num_classes=100)
        counts = {method: trained(tuned(method, network)) for method in METHODS}
    shares = {method: 100 * count / counts[FULL] for method, count in counts.items()}
    bars = {"share": ([float(index) for index in range(len(shares))], list(shares.values()))}
    panel = Panel("Trained parameters of ViT-B/16", "", "% of full fine-tuning", bars, kind="bar", log_y=True,
                  ticks=list(shares))  # fmt: skip
    extras = {f"trained parameters, {method}": float(count) for method, count in counts.items()}
    return Measurement(shares["AdaptFormer-64"], shares[FULL], extras, (panel,))


def memory(job: Job) -> Measurement:
    """Bytes that a training step takes beside the weights, AdamW's state among them; seconds in the same run."""
    name, batch, rounds = MEASURED[job.scale]
    torch.manual_seed(job.seed)
    network = timm.create_model(name, num_classes=10)
    pictures, labels = torch.randn(batch, 3, 224, 224, device=job.device), torch.arange(batch, device=job.device) % 10
    peaks, steps, extras = {}, {}, {}
    for method in ("AdaptFormer-64", FULL, LINEAR):
        steps[method] = training_step(tuned(method, network).to(job.device), pictures, labels)
        peaks[method] = measure.peak_extra_bytes(steps[method], job.device) / 2**20
        extras[f"MiB, {method}"] = peaks[method]
    seconds = measure.side_by_side(steps, rounds=rounds, device=job.device)
    extras |= {f"seconds, {method}": measure.median(times) for method, times in seconds.items()}
    return Measurement(peaks["AdaptFormer-64"], peaks[FULL], extras)


def training_step(model: nn.Module, pictures: Tensor, labels: Tensor) -> Callable[[], None]:
    """A function that takes one step of AdamW on what is trained; the first call makes the optimiser's state."""
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(pictures), labels).backward()
        optimizer.step()

    return step


TUNES = "pretrains and tunes a ViT of that width and depth on the whole of CIFAR-10"


def _plan(claim: str, tokens: int, what: str, here: str) -> Plan:
    """One step of AdaptFormer-64 on a ViT-B, 1,024 samples as published."""
    with torch.device("meta"):
        model = tuned("AdaptFormer-64", timm.create_model("vit_base_patch16_224", num_classes=174))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dim, depth, batch = 768, 12, 1024
    multiply_adds = depth * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
    # The backward pass goes through the frozen products once: as much again as the forward pass.
    flops = 4.0 * multiply_adds * batch
    activations = batch * depth * tokens * dim * 12 * 4
    launch = f"everyformer run adaptformer.{claim} --scale paper --device cuda --precision bf16-mixed"
    notes = (
        f"one step of AdaptFormer-64 on ViT-B with {tokens} tokens of each of {batch} {what}, {trained(model):,} parameters "
        f"trained; the run here {here}"
    )
    return Plan(parameters, flops, 4 * parameters + 12 * trained(model) + activations, launch, notes)


def plan_ssv2() -> Plan:
    """Clips of 16 frames."""
    return _plan("ssv2", 1568, "clips", TUNES)


def plan_hmdb51() -> Plan:
    """Clips of 16 frames."""
    return _plan("hmdb51", 1568, "clips", TUNES)


def plan_prompts() -> Plan:
    """Pictures of 224 x 224 pixels."""
    return _plan("prompts", 197, "pictures", TUNES)


def plan_start() -> Plan:
    """What a training step would cost; here nothing is trained."""
    return _plan("start", 197, "pictures", "compares outputs before any training")


def plan_fraction() -> Plan:
    """What a training step would cost; here nothing is trained."""
    return _plan("fraction", 197, "pictures", "only counts")


def plan_memory() -> Plan:
    """A few steps on ViT-B/16."""
    return _plan("memory", 197, "pictures", "takes a few steps on 128 pictures")
