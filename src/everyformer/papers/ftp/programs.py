"""A toy code task: from definitions in any order, write down a variable's ones in the order in which they can be run.

``c=b f=e b=a e=d : c >`` is continued by ``a b c``: c is a copy of b, which is a copy of a, while d, e and f are not
needed. Each letter of the answer but the first can be looked up from the letter before it. The first cannot: it is
found by going back through all definitions from the one asked for, before anything is written.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Scale
from everyformer.lab import train
from everyformer.lab.pretrained import load_or_train
from everyformer.papers.ftp import model as method
from everyformer.papers.ftp.model import FutureTokenPredictor, future_loss
from everyformer.parts import language
from everyformer.parts.language import LanguageModel

Name = Literal["ftp", "gpt"]


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a program, of both models and of their training; ``gpt_depth`` gives equal parameters.

    Attributes:
        chains: chains of definitions in a program; one of them is asked for.
        links: definitions of a chain; the answer is one variable longer.
        variables: letters to choose from.
    """

    chains: int
    links: int
    variables: int
    dim: int
    depth: int
    decoder_depth: int
    gpt_depth: int
    steps: int
    tested: int
    batch: int = 32
    rate: float = 2e-3

    @property
    def prompt(self) -> int:
        """Tokens before the answer."""
        return 3 * self.chains * self.links + 3

    @property
    def answer(self) -> int:
        """Tokens of the answer."""
        return self.links + 1


SIZES: dict[Scale, Size] = {
    "smoke": Size(2, 2, 6, 32, 1, 1, 3, steps=20, tested=32),
    "cpu": Size(2, 2, 6, 48, 3, 1, 5, steps=3000, tested=2000),
    "paper": Size(4, 7, 40, 768, 12, 3, 17, steps=200_000, tested=10_000, batch=256, rate=3e-4),
}


def programs(size: Size, count: int, generator: torch.Generator) -> Int[Tensor, "count prompt+answer"]:
    """Random programs with their answers. Variables are 0 and up, then come ``=``, ``:`` and ``>``."""
    equals, colon, write = range(size.variables, size.variables + 3)
    names = torch.rand(count, size.variables, generator=generator).argsort(1)[:, : size.chains * size.answer]
    chains = names.view(count, size.chains, size.answer)  # each from what needs nothing to what is asked for
    sources, copies = chains[..., :-1].flatten(1), chains[..., 1:].flatten(1)
    lines = torch.stack([copies, torch.full_like(copies, equals), sources], dim=-1)
    order = torch.rand(count, lines.shape[1], generator=generator).argsort(1)
    lines = lines.gather(1, order[..., None].expand_as(lines)).flatten(1)
    answer = chains[:, 0]
    mark = torch.full((count, 1), colon)
    return torch.cat([lines, mark, answer[:, -1:], torch.full_like(mark, write), answer], dim=1)


def build(name: Name, size: Size) -> nn.Module:
    """One of the two kinds of model, from the current random state."""
    shape: dict[str, Any] = {
        "vocabulary": size.variables + 3,
        "dim": size.dim,
        "heads": size.dim // (64 if size.dim > 256 else 16),
        "longest": size.prompt + size.answer,
    }
    if name == "ftp":
        return FutureTokenPredictor(depth=size.depth, decoder_depth=size.decoder_depth, ahead=size.answer, **shape)
    return LanguageModel(depth=size.gpt_depth, **shape)


class Training(nn.Module):
    """A model's loss on the answer alone: what a program is made of cannot be known beforehand."""

    def __init__(self, model: nn.Module, size: Size) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, tokens: Int[Tensor, "batch prompt+answer"]) -> Float[Tensor, ""]:
        if isinstance(self.model, FutureTokenPredictor):
            places = torch.arange(self.size.prompt - 1, tokens.shape[1] - 1, device=tokens.device)
            return future_loss(self.model, tokens, places.expand(len(tokens), -1))
        logits = self.model(tokens[:, :-1])[:, self.size.prompt - 1 :]
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, self.size.prompt :].flatten())


def trained(name: Name, scale: Scale, *, seed: int, device: str = "cpu", precision: str = "32-true") -> nn.Module:
    """A model trained on programs, from the cache where it is there: the same programs and steps for both."""
    size = SIZES[scale]
    torch.manual_seed(seed)
    model = build(name, size)

    def fit(folder: Path) -> None:
        train.fit_drawn(
            Training(model, size), lambda module, batch: module(batch),
            lambda generator: programs(size, size.batch, generator),
            steps=size.steps, rate=size.rate, folder=folder, seed=seed, device=device, precision=precision,
            label=f"{name} on programs",
        )  # fmt: skip
        model.cpu()

    recipe = {"name": name, **dataclasses.asdict(size), "seed": seed, "precision": precision}
    load_or_train(model, fit, recipe=recipe, samples=[], code=(sys.modules[__name__], method, language))
    return model.to(device).eval()


@torch.no_grad()
def solved(model: nn.Module, scale: Scale, *, seed: int, draft: int = 1) -> dict[str, float]:
    """Per cent of new programs whose answer is right as a whole, and each of its letters, taking the likeliest ones."""
    size = SIZES[scale]
    drawn = programs(size, size.tested, torch.Generator().manual_seed(1_000_003 * seed + 999_983))
    drawn = drawn.to(next(model.parameters()).device)
    prompt, answer = drawn[:, : size.prompt], drawn[:, size.prompt :]
    options = {"draft": draft} if isinstance(model, FutureTokenPredictor) else {}
    written = model.generate(prompt, size.answer, temperature=0, **options)[:, size.prompt :]  # type: ignore[operator]
    right = (written == answer).float().cpu()
    letters = {f"letter {place + 1}": 100 * float(share) for place, share in enumerate(right.mean(0))}
    return {"whole": 100 * float(right.prod(1).mean()), **letters}
