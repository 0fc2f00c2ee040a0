"""Data sets and encodings by PyTorch Geometric's own classes, and the simulated tasks of the claims."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch_geometric.data import Data, Dataset
from torch_geometric.datasets import LRGBDataset
from torch_geometric.transforms import AddLaplacianEigenvectorPE, AddRandomWalkPE

LRGB = ("Peptides-func", "Peptides-struct", "PascalVOC-SP", "COCO-SP", "PCQM-Contact")
DECAY = 0.98  # of the global mode of the simulated field, per step


def encodings(data: Data, walks: int = 16, eigenvectors: int = 0) -> Data:
    """A copy of ``data`` with ``random_walk_pe`` (nodes, walks) and ``laplacian_pe`` (nodes, eigenvectors).

    A graph with fewer eigenvectors has zeros in the columns that are left. Wants scipy for the eigenvectors.

    Raises:
        ValueError: a negative number.
    """
    if walks < 0 or eigenvectors < 0:
        raise ValueError(f"walks and eigenvectors must be at least 0, got {walks} and {eigenvectors}")
    if walks:
        data = AddRandomWalkPE(walks, attr_name="random_walk_pe")(data)
    if eigenvectors:
        there = min(eigenvectors, max(data.num_nodes - 1, 0))
        found = torch.zeros(data.num_nodes, eigenvectors)
        if there:
            data = AddLaplacianEigenvectorPE(there, attr_name="laplacian_pe", is_undirected=data.is_undirected())(data)
            found[:, :there] = data.laplacian_pe
        data.laplacian_pe = found
    return data


def lrgb(name: str, root: str | Path, split: str = "train", **options: Any) -> Dataset:
    """A set of the Long Range Graph Benchmark, downloaded into ``root`` by PyG's ``LRGBDataset``.

    Raises:
        ValueError: an unknown name or split.
    """
    if name not in LRGB:
        raise ValueError(f"name must be one of {', '.join(LRGB)}, got {name!r}")
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be one of train, val, test, got {split!r}")
    return LRGBDataset(str(root), name, split=split, **options)


def ogb(name: str, root: str | Path, **options: Any) -> Dataset:
    """A graph property set of OGB such as ``"ogbg-molhiv"``, downloaded into ``root`` by the package ``ogb``.

    Raises:
        ImportError: the package ``ogb`` is missing.
    """
    try:
        from ogb.graphproppred import PygGraphPropPredDataset
    except ImportError as error:
        raise ImportError(f"data set {name!r} needs the package ogb: pip install ogb") from error
    return PygGraphPropPredDataset(name, root=str(root), **options)  # type: ignore[no-any-return]


def lattice(height: int, width: int, periodic: bool = True) -> tuple[Int[Tensor, "2 edges"], Float[Tensor, "edges 4"]]:
    """Edges to the four neighbours of every place of a grid, and which of the four directions each goes."""
    places = torch.arange(height * width).view(height, width)
    parts, directions = [], []
    for direction, (axis, shift) in enumerate(((0, 1), (0, -1), (1, 1), (1, -1))):
        neighbour = places.roll(shift, dims=axis)
        pair = torch.stack([neighbour, places])
        if not periodic:
            edge = (slice(None), 0 if shift == 1 else -1)
            keep = torch.ones(height, width, dtype=torch.bool)
            keep[edge[::-1] if axis == 0 else edge] = False
            pair = pair[:, keep]
        parts.append(pair.flatten(1))
        directions.append(torch.full((parts[-1].shape[1],), direction))
    return torch.cat(parts, 1), torch.nn.functional.one_hot(torch.cat(directions), 4).float()


def advection_diffusion(
    runs: int, steps: int, side: int, generator: torch.Generator
) -> Float[Tensor, "runs steps places"]:
    """A field on a periodic grid: advected, diffused and stirred locally, plus a mode that is the same everywhere.

    The local part has no area mean and unit variance: an upwind scheme with velocity (0.5, 0.25) places per step,
    diffusivity 0.05, damping 0.02 and smooth random forcing. The global part is a damped, noisy oscillator with a period
    of 40 steps, and unit variance too.
    """
    spin_up = 100
    frequency = torch.fft.fftfreq(side)
    smooth = torch.exp(-0.5 * (2 * math.pi * 1.5) ** 2 * (frequency[:, None] ** 2 + frequency[None] ** 2))
    smooth[0, 0] = 0.0
    local = torch.zeros(runs, side, side)
    mode = torch.randn(runs, 2, generator=generator)
    angle = 2 * math.pi / 40
    turn = DECAY * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    fields, modes = [], []
    for step in range(spin_up + steps):
        noise = torch.fft.ifft2(torch.fft.fft2(torch.randn(runs, side, side, generator=generator)) * smooth).real
        east, south = local - local.roll(1, 2), local - local.roll(1, 1)
        around = sum(local.roll(shift, axis) for shift in (1, -1) for axis in (1, 2)) - 4 * local
        local = 0.98 * (local - 0.5 * east - 0.25 * south + 0.05 * around) + noise
        mode = mode @ turn.T + math.sqrt(1 - DECAY**2) * torch.randn(runs, 2, generator=generator)
        if step >= spin_up:
            fields.append(local)
            modes.append(mode[:, :1])
    field = torch.stack(fields, 1).flatten(2)
    return field / field.std() + torch.stack(modes, 1)


def ring(nodes: int) -> Int[Tensor, "2 edges"]:
    """Every node joined to the next, both ways."""
    start = torch.arange(nodes)
    return _both_ways(start, (start + 1) % nodes)


def cliques_and_path(nodes: int) -> Int[Tensor, "2 edges"]:
    """Two complete graphs of a third of the nodes each, joined by a path of the others."""
    size = nodes // 3
    one, two = torch.triu_indices(size, size, 1)
    path = torch.arange(size - 1, nodes - size)
    return _both_ways(torch.cat([one, one + nodes - size, path]), torch.cat([two, two + nodes - size, path + 1]))


def random_tree(nodes: int, generator: torch.Generator) -> Int[Tensor, "2 edges"]:
    """Every node but the first joined to one of the three before it."""
    child = torch.arange(1, nodes)
    back = 1 + (torch.rand(nodes - 1, generator=generator) * child.clamp(max=3)).long()
    return _both_ways(child, child - back)


def _both_ways(start: Tensor, end: Tensor) -> Tensor:
    return torch.stack([torch.cat([start, end]), torch.cat([end, start])])


def global_sum(
    graphs: int, nodes: int, generator: torch.Generator
) -> tuple[Float[Tensor, "graphs nodes 1"], Float[Tensor, "graphs nodes 1"]]:
    """A number per node; the label of every node is the sum over its graph, with variance 1."""
    x = torch.randn(graphs, nodes, 1, generator=generator)
    return x, (x.sum(1, keepdim=True) / math.sqrt(nodes)).expand(-1, nodes, -1)


def retrieval(
    graphs: int, nodes: int, generator: torch.Generator, code: int = 8
) -> tuple[Float[Tensor, "graphs nodes features"], Float[Tensor, "graphs nodes 1"]]:
    """Each node has a random unit vector as key, a number, and the key of another node; the label is that node's number."""
    key = torch.nn.functional.normalize(torch.randn(graphs, nodes, code, generator=generator), dim=-1)
    value = torch.randn(graphs, nodes, 1, generator=generator)
    other = torch.rand(graphs, nodes, generator=generator).argsort(1)[..., None]
    query = key.gather(1, other.expand(-1, -1, code))
    return torch.cat([key, query, value], -1), value.gather(1, other)
