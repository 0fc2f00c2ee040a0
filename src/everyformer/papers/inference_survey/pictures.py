"""Panels of the survey's claims, and what only a picture needs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.catalog import Panel
from everyformer.papers.inference_survey.method import Scheme
from everyformer.parts.compress.anatomy import blocks, linears
from everyformer.parts.compress.merging import Matches, bipartite, merge_tokens, unmerge


def bars(title: str, unit: str, values: dict[str, float]) -> Panel:
    """One bar for each name."""
    places = [float(place) for place in range(len(values))]
    return Panel(title, "", unit, {title.lower(): (places, list(values.values()))}, kind="bar", ticks=list(values))


def trade(title: str, size: dict[Scheme | None, float], quality: dict[Scheme | None, float]) -> Panel:
    """Size against quality, a line for each family from its smallest to the model as it was trained."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    families = dict.fromkeys(scheme.family for scheme in size if scheme is not None)
    for family in families:
        members = sorted(
            (size[scheme], quality[scheme]) for scheme in size if scheme is None or scheme.family == family
        )
        lines[family] = ([point[0] for point in members], [point[1] for point in members])
    return Panel(title, "size, %", "quality kept, %", lines)


class Sparse(nn.Module):
    """A linear layer that stores and multiplies what is not zero alone, in compressed rows."""

    weight: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().to_sparse_csr())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        flat: Any = self.weight @ x.flatten(0, -2).mT
        out = flat.mT.unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias  # type: ignore[no-any-return]


def sparse(model: nn.Module) -> nn.Module:
    """Let the linear layers of the blocks multiply by compressed rows, in place."""
    for name, layer in linears(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Sparse(layer))
    return model


@torch.no_grad()
def merged_digit(model: nn.Module, picture: Tensor) -> Panel:
    """A digit, and what is left of it where all patches that became one token show their mean."""
    groups: list[Tensor] = []

    def note(keys: Tensor, count: int, protected: int) -> Matches:
        found = bipartite(keys, count, protected)
        now = groups[-1] if groups else torch.arange(keys.shape[1], device=keys.device)
        places = torch.empty(keys.shape[1], dtype=torch.long, device=keys.device)
        places[found.kept[0]] = torch.arange(found.kept.shape[1], device=keys.device)
        places[found.source[0]] = places[found.target[0]]
        groups.append(places[now])
        return found

    first: Any = blocks(model)[1][0]
    count = first.merging.pairs
    merge_tokens(unmerge(model), count, match=note)
    model(picture[None])
    merge_tokens(unmerge(model), count)
    patches = groups[-1][1:]  # without the class token
    side = round(len(patches) ** 0.5)
    small = F.adaptive_avg_pool2d(picture[:1], side).flatten()
    sums = torch.zeros(int(patches.max()) + 1, device=small.device)
    shown = sums.scatter_add(0, patches, small) / sums.scatter_add(0, patches, torch.ones_like(small)).clamp_min(1)
    both = torch.cat([small.view(side, side), shown[patches].view(side, side)], dim=1)
    grid = [[round(value, 2) for value in row] for row in both.cpu().tolist()]
    left = int(patches.unique().numel())
    return Panel(f"A digit of {side * side} patches, and of {left} merged tokens", "", "", kind="heat", grid=grid)
