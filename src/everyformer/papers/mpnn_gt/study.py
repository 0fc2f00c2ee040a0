"""The trainings of the claims: one predictor, one budget and one search for every kind of model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.catalog import Job
from everyformer.lab.measure import count_parameters
from everyformer.lab.train import fit
from everyformer.papers.mpnn_gt.attention import FullAttention, LinearAttention, RandomFeatures
from everyformer.papers.mpnn_gt.model import GPSLayer, VirtualNodeNetwork
from everyformer.papers.mpnn_gt.segments import Segments

PLAIN, VIRTUAL, PERFORMER, FULL = "message passing", "message passing + virtual node", "Performer", "full attention"
KINDS = (PLAIN, VIRTUAL, PERFORMER, FULL)
HEADS = 4

# Nodes (graphs, nodes, features), labels, edges (graphs, edges, 2) with -1 where there are fewer, edge features.
Batch = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Predictor(nn.Module):
    """Labels of nodes by message passing, with a virtual node or without, or by a graph transformer without edges.

    The virtual node is the OGB one: it pools before the convolution and is twice as wide inside.
    """

    def __init__(
        self, kind: str, dim: int, inputs: int, outputs: int, layers: int, conv: str, edge_features: int = 0
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, dim)
        self.edges = nn.Linear(edge_features, dim) if edge_features and kind in (PLAIN, VIRTUAL) else None
        if kind in (PLAIN, VIRTUAL):
            virtual = kind == VIRTUAL
            layer = VirtualNodeNetwork(dim, layers, conv, virtual=virtual, hidden=2 * dim, pool="before")
            self.layers = nn.ModuleList([layer])
        else:
            self.layers = nn.ModuleList(GPSLayer(None, _attention(kind, dim), dim) for _ in range(layers))
        self.leave = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outputs))

    def forward(self, x: Tensor, edges: Tensor, edge_attr: Tensor | None) -> Tensor:
        """(graphs, nodes, features) and padded edges to (graphs, nodes, labels)."""
        graphs, nodes, _ = x.shape
        index = torch.arange(graphs, device=x.device)
        real = edges[..., 0] >= 0
        edge_index = (edges + nodes * index[:, None, None])[real].T
        attr = None if self.edges is None or edge_attr is None else self.edges(edge_attr[real])
        segments = Segments(index.repeat_interleave(nodes), graphs, graphs * nodes)
        hidden = self.enter(x.flatten(0, 1))
        for layer in self.layers:
            hidden = layer(hidden, edge_index, attr, segments)
        return self.leave(hidden).unflatten(0, (graphs, nodes))  # type: ignore[no-any-return]


def _attention(kind: str, dim: int) -> nn.Module:
    if kind == FULL:
        return FullAttention(dim, HEADS)
    return LinearAttention(dim, HEADS, RandomFeatures(dim // HEADS))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Graphs of one task, all in memory; the fields of :data:`Batch`."""

    x: Tensor
    y: Tensor
    edges: Tensor
    edge_attr: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def pick(self, chosen: Tensor) -> Batch:
        """The graphs with these numbers."""
        attr = None if self.edge_attr is None else self.edge_attr[chosen]
        return self.x[chosen], self.y[chosen], self.edges[chosen], attr

    def batches(self, size: int, seed: int | None = None) -> Iterator[Batch]:
        """All graphs once, in an order drawn by ``seed``; a last batch that is not full is left out of a shuffle."""
        if seed is None:
            yield from (self.pick(part) for part in torch.arange(len(self)).split(size))
            return
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        yield from (self.pick(part) for part in order.split(size) if len(part) == size)


@dataclasses.dataclass(frozen=True)
class Task:
    """Training, validation and test graphs, and what every model gets: layers, parameters, steps, batch, rates."""

    train: Samples
    validation: Samples
    test: Samples
    layers: int
    conv: str
    parameters: int
    steps: int
    batch: int
    rates: tuple[float, ...]

    def model(self, kind: str, dim: int | None = None) -> Predictor:
        """A predictor of this kind, as wide as the number of parameters asks for."""
        attr = self.train.edge_attr
        given: dict[str, Any] = {"inputs": self.train.x.shape[-1], "outputs": self.train.y.shape[-1]}
        given |= {"layers": self.layers, "conv": self.conv, "edge_features": 0 if attr is None else attr.shape[-1]}
        width = dim or width_for(self.parameters, lambda d: Predictor(kind, d, **given), _multiple(kind))
        return Predictor(kind, width, **given)


def _multiple(kind: str) -> int:
    return HEADS if kind in (PERFORMER, FULL) else 1


def width_for(parameters: int, build: Callable[[int], nn.Module], multiple: int) -> int:
    """The width, a multiple of ``multiple``, at which ``build(dim)`` comes nearest to a number of parameters."""
    best, distance = multiple, math.inf
    for dim in range(multiple, 1024, multiple):
        with torch.device("meta"):
            gap = abs(count_parameters(build(dim)) - parameters)
        if gap > distance:
            break
        best, distance = dim, gap
    return best


@dataclasses.dataclass(frozen=True)
class Score:
    """Test error per label of the better of the rates, its validation loss, and the model's size."""

    mse: list[float]
    validation: float
    parameters: int


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error over nodes and labels."""
    x, y, edges, attr = batch
    return F.mse_loss(model(x, edges, attr).float(), y)


def search(job: Job, name: str, kind: str, task: Task) -> Score:
    """Train at each rate, and score the one with the lowest validation loss on the test graphs."""
    scores = []
    for rate in task.rates:
        torch.manual_seed(job.seed)
        model = task.model(kind)
        label = f"{name}-{kind}-{rate:g}".replace(" ", "_")

        def optimizer(parameters: Any, rate: float = rate) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameters, rate, weight_decay=1e-4)

        history = fit(
            model,
            loss,
            lambda epoch: task.train.batches(task.batch, 1000 * job.seed + epoch),
            validation=lambda: task.validation.batches(64),
            optimizer=optimizer,
            scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(
                opt, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / task.steps)))
            ),
            schedule_every="step",
            steps=task.steps,
            folder=job.folder / label,
            seed=job.seed,
            device=job.device,
            precision=job.precision,
            strategy=job.strategy,
            label=label,
        )
        scores.append(Score(errors(model, task.test, job.device), history.best, count_parameters(model)))
    return min(scores, key=lambda score: score.validation)


@torch.no_grad()
def errors(model: nn.Module, samples: Samples, device: str) -> list[float]:
    """Mean squared error of each label over all graphs and nodes."""
    model.eval().to(device)
    total = torch.zeros(samples.y.shape[-1], dtype=torch.float64)
    for x, y, edges, attr in samples.batches(64):
        out = model(x.to(device), edges.to(device), None if attr is None else attr.to(device)).float().cpu()
        total += (out - y).double().square().mean(1).sum(0)
    return (total / len(samples)).tolist()
