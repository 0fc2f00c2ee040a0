"""Two small models trained once, to compress: a LLaMA of bytes on plays and a vision transformer on handwritten digits.

What is trained is kept by a hash of all that settles it, the training after compression too.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer import compressors
from everyformer.catalog import Scale
from everyformer.lab import data, text, train
from everyformer.lab.pretrained import load_or_train
from everyformer.parts.compress import anatomy, factors, pruning
from everyformer.parts.dit import grid_positions

Part = Literal["validation", "test"]
LARGE, LARGE_STEPS = {"width": 768, "layers": 12, "heads": 12}, 20_000  # of characters at the scale of a paper
SIDE = 20  # pixels that are left of a digit, which has no ink outside
Steps = Iterable[tuple[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model to compress.

    Attributes:
        quality: per cent of right answers of a model of this kind, on data to choose by or to test on.
        heal: ``heal(model, steps, updates)`` trains a compressed model on, in place; kept by a hash.
        inputs: a batch to time and to take memory of.
    """

    name: str
    model: nn.Module
    quality: Callable[..., float]
    heal: Callable[[nn.Module, Steps, int], None]
    inputs: Tensor


def subject(name: Literal["characters", "digits"], *, scale: Scale, seed: int, device: str = "cpu") -> Subject:
    """One of the two models with its data.

    Raises:
        ValueError: another name.
    """
    if name == "characters":
        return _characters(scale, seed, device)
    if name == "digits":
        return _digits(scale, seed, device)
    raise ValueError(f"subject must be characters or digits, got {name!r}")


def _kept(model: nn.Module, fit: Callable[[Path], object], recipe: dict[str, Any], samples: list[Tensor]) -> None:
    code = [sys.modules[__name__], anatomy, pruning, factors]
    load_or_train(model, fit, recipe=recipe, samples=samples, code=code)


def _characters(scale: Scale, seed: int, device: str) -> Subject:
    smoke = scale == "smoke"
    plays = text.corpus("made_up" if smoke else "tiny_shakespeare")
    middle = len(plays.test) // 2
    parts = {"validation": plays.test[:middle], "test": plays.test[middle:]}
    pieces = 2 if smoke else 64

    @torch.no_grad()
    def quality(model: nn.Module, part: Part) -> float:
        whole = parts[part].unfold(0, text.LENGTH + 1, text.LENGTH)[:pieces]
        model.eval()
        whole = whole.to(next(model.parameters()).device)
        right = [(logits_of(model, some[:, :-1]).argmax(-1) == some[:, 1:]).float() for some in torch.split(whole, 32)]
        return 100 * float(torch.cat(right).mean())

    def heal(model: nn.Module, steps: Steps, updates: int) -> None:
        recipe = {"heal": "characters", "scale": scale, "seed": seed, "updates": updates, "steps": _trained(steps)}
        _kept(
            model,
            lambda folder: text.fit(
                model,
                plays.train,
                steps=updates,
                folder=folder,
                seed=seed,
                learning_rate=5e-4,
                label="healing",
                device=device,
            ),
            recipe,
            [plays.train],
        )

    inputs = next(text.windows(plays.test, batch=2 if smoke else 8, count=1))[:, :-1]
    if scale == "paper":
        torch.manual_seed(seed)
        model = text.build("llama", **LARGE)
        _kept(
            model,
            lambda folder: text.fit(model, plays.train, steps=LARGE_STEPS, folder=folder, seed=seed, device=device),
            {"characters": LARGE, "seed": seed, "updates": LARGE_STEPS},
            [plays.train],
        )
    else:
        model = text.pretrained("llama", scale=scale, seed=seed)
    return Subject("characters", model.to(device), quality, heal, inputs.to(device))


def logits_of(model: nn.Module, inputs: Tensor) -> Any:
    """What a model says, whether it returns logits or an output that has them."""
    output = model(inputs)
    return getattr(output, "logits", output)


@dataclasses.dataclass(frozen=True)
class Digits:
    """Handwritten digits (samples, 3, 20, 20), about zero mean and unit deviation, with their classes."""

    train: tuple[Float[Tensor, "train 3 20 20"], Tensor]
    validation: tuple[Float[Tensor, "validation 3 20 20"], Tensor]
    test: tuple[Float[Tensor, "test 3 20 20"], Tensor]


def digits(scale: Scale) -> Digits:
    """MNIST's test digits (``paper``: the others) in a fixed mixed order, a tenth to choose by and a tenth to test on."""
    images, labels = data.digits({"smoke": "mnist_500", "cpu": "mnist_test", "paper": "mnist_train"}[scale])
    edge = (28 - SIDE) // 2
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pictures = (images[order, edge:-edge, edge:-edge].float() / 255 - 0.25) / 0.38
    cut = [len(labels) * 8 // 10, len(labels) * 9 // 10]
    whole = pictures[:, None].expand(-1, 3, -1, -1).tensor_split(cut)
    return Digits(*zip(whole, labels[order].tensor_split(cut), strict=True))


def vit(*, width: int = 64, depth: int = 6, heads: int = 4, patch: int = 2) -> nn.Module:
    """timm's vision transformer for the digits, from the current random state.

    So small a one learns in minutes because its patches overlap and its positions begin as waves: two pixels by two tell
    little, and learned positions begin too small to attend by.
    """
    import timm.models

    models: Any = timm.models
    model = models.VisionTransformer(
        img_size=SIDE, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=10
    )
    model.patch_embed.proj = nn.Conv2d(3, width, 3 * patch, stride=patch, padding=patch)
    with torch.no_grad():
        model.pos_embed[:, 1:] = grid_positions(SIDE // patch, width)
    return model  # type: ignore[no-any-return]


def fit_digits(
    model: nn.Module,
    samples: tuple[Tensor, Tensor],
    *,
    updates: int,
    folder: Path,
    seed: int,
    learning_rate: float = 2e-3,
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor] | None = None,
    device: str = "cpu",
    label: str = "",
) -> train.History:
    """The one recipe of digit classifiers: AdamW on batches of 32, at the pace of :func:`train.warmed`."""
    images, labels = samples
    batch = min(32, len(labels))

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order = torch.randperm(len(labels), generator=generator)[: len(labels) // batch * batch]
        for chosen in torch.split(order, batch):
            yield images[chosen], labels[chosen]

    return train.fit(
        model,
        loss or (lambda module, some: F.cross_entropy(module(some[0]), some[1])),
        batches,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, train.warmed(updates)),
        schedule_every="step",
        steps=updates,
        folder=folder,
        seed=seed,
        device=device,
        label=label,
    )


@torch.no_grad()
def accuracy(model: nn.Module, samples: tuple[Tensor, Tensor]) -> float:
    """Per cent of the pictures whose class has the highest logit."""
    model.eval()
    device = next(model.parameters()).device
    right = [(model(images.to(device)).argmax(1).cpu() == labels).float()
             for images, labels in zip(torch.split(samples[0], 250), torch.split(samples[1], 250), strict=True)]  # fmt: skip
    return 100 * float(torch.cat(right).mean())


DIGITS = {  # shapes, and training steps
    "smoke": ({"width": 32, "depth": 2, "heads": 2, "patch": 5}, 20),
    "cpu": ({"width": 64, "depth": 6, "heads": 4, "patch": 2}, 900),
    "paper": ({"width": 384, "depth": 12, "heads": 6, "patch": 2}, 20_000),
}


def _digits(scale: Scale, seed: int, device: str) -> Subject:
    samples = digits(scale)
    shape, updates = DIGITS[scale]
    torch.manual_seed(seed)
    model = vit(**shape)
    _kept(
        model,
        lambda folder: fit_digits(
            model, samples.train, updates=updates, folder=folder, seed=seed, label="ViT on digits"
        ),
        {"digits": shape, "scale": scale, "seed": seed, "updates": updates},
        list(samples.train),
    )

    def heal(module: nn.Module, steps: Steps, count: int) -> None:
        _kept(
            module,
            lambda folder: fit_digits(
                module,
                samples.train,
                updates=count,
                folder=folder,
                seed=seed,
                learning_rate=5e-4,
                label="healing",
                device=device,
            ),
            {"heal": "digits", "scale": scale, "seed": seed, "updates": count, "steps": _trained(steps)},
            list(samples.train),
        )

    def quality(module: nn.Module, part: Part) -> float:
        return accuracy(module, getattr(samples, part))

    inputs = samples.test[0][: 8 if scale == "smoke" else 64].contiguous().to(device)
    return Subject("digits", model.eval().to(device), quality, heal, inputs)


def _trained(steps: Steps) -> list[Any]:
    """Those that come before training on."""
    cards = compressors.cards()
    return [step for step in plain(steps) if cards[step[0]].stage not in ("bits", "tokens")]


def plain(steps: Steps) -> list[Any]:
    """Steps as JSON has them."""
    return [[name, dict(options)] for name, options in steps]
