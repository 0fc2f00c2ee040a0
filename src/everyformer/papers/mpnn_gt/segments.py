"""Sums, means and maxima over the graphs of a batch, linear in the number of nodes and without a padded copy."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

REDUCTIONS = ("sum", "mean", "max", "min")


@dataclasses.dataclass(frozen=True)
class Segments:
    """Which graph each node belongs to: ``index`` (nodes,), or ``None`` when all belong to one."""

    index: Tensor | None
    count: int
    nodes: int

    @classmethod
    def of(cls, x: Tensor, batch: Tensor | Segments | None, graphs: int | None = None) -> Segments:
        """Read and check a batch vector.

        Args:
            batch: graph of each node, sorted and without gaps; ``None``: one graph. Segments are passed through, so
                that a stack of layers checks once.
            graphs: how many graphs there are. With it a graph may have no nodes, and compiled code needs no graph break.

        Raises:
            TypeError: ``batch`` is not a vector of int64.
            ValueError: ``batch`` has another length than ``x``, is unsorted, or skips a graph; or is missing where
                ``graphs`` says that there are several.
        """
        nodes = x.shape[0]
        if isinstance(batch, Segments):
            if batch.nodes != nodes:
                raise ValueError(f"batch must have one entry per node, {nodes}, got {batch.nodes}")
            return batch
        if batch is None:
            if graphs not in (None, 1):
                raise ValueError(f"batch must be given for {graphs} graphs, got None")
            return cls(None, 1, nodes)
        if batch.dtype is not torch.long or batch.ndim != 1:
            raise TypeError(f"batch must be a vector of int64, got {batch.ndim} axes of {batch.dtype}")
        if len(batch) != nodes:
            raise ValueError(f"batch must have one entry per node, {nodes}, got {len(batch)}")
        if torch.compiler.is_compiling():
            return cls(batch, int(batch[-1]) + 1 if graphs is None else graphs, nodes)
        return cls(batch, _checked_count(batch, graphs), nodes)

    def sizes(self, like: Tensor) -> Float[Tensor, "graphs 1"]:
        """Number of nodes of each graph, in the dtype and on the device of ``like``."""
        return self.sum(like.new_ones(self.nodes, 1))

    def sum(self, x: Float[Tensor, "nodes dim"]) -> Float[Tensor, "graphs dim"]:
        """Sum over the nodes of each graph; 0 for a graph without nodes."""
        if self.index is None:
            return x.sum(0, keepdim=True)
        return x.new_zeros(self.count, x.shape[1]).index_add(0, self.index, x)

    def reduce(self, x: Float[Tensor, "nodes dim"], how: str) -> Float[Tensor, "graphs dim"]:
        """``"sum"``, ``"mean"``, ``"max"`` or ``"min"`` over the nodes of each graph; 0 for a graph without nodes."""
        if how == "sum":
            return self.sum(x)
        if how == "mean":
            return self.sum(x) / self.sizes(x).clamp(min=1)
        if how == "min":
            return -self.reduce(-x, "max")
        index = x.new_zeros(self.nodes, dtype=torch.long) if self.index is None else self.index
        lowest = x.new_full((self.count, x.shape[1]), -torch.inf)
        top = lowest.scatter_reduce(0, index[:, None].expand_as(x), x, "amax")
        return torch.where(self.sizes(x) > 0, top, torch.zeros_like(top))

    def softmax(self, scores: Float[Tensor, "nodes heads"]) -> Float[Tensor, "nodes heads"]:
        """Weights that sum to 1 over the nodes of each graph."""
        weights = (scores - self.spread(self.reduce(scores.detach(), "max"))).exp()
        return weights / self.spread(self.sum(weights))

    def spread(self, per_graph: Float[Tensor, "graphs dim"]) -> Float[Tensor, "nodes dim"]:
        """To every node, what its graph has."""
        if self.index is None:
            return per_graph.expand(self.nodes, -1)
        return per_graph.index_select(0, self.index)

    def dense(self, x: Float[Tensor, "nodes dim"]) -> tuple[Float[Tensor, "graphs longest dim"], Tensor, Tensor]:
        """Nodes padded to the largest graph, which places hold a node, and each node's place in the flattened pad."""
        if self.index is None:
            return x[None], x.new_ones(1, self.nodes, dtype=torch.bool), torch.arange(self.nodes, device=x.device)
        lengths = self.index.new_zeros(self.count).index_add(0, self.index, torch.ones_like(self.index))
        longest = int(lengths.max()) if self.count else 0
        starts = lengths.cumsum(0) - lengths
        place = torch.arange(self.nodes, device=x.device) - starts[self.index] + longest * self.index
        padded = x.new_zeros(self.count * longest, x.shape[1]).index_copy(0, place, x)
        real = torch.arange(longest, device=x.device) < lengths[:, None]
        return padded.view(self.count, longest, x.shape[1]), real, place


Batch = Tensor | Segments | None
"""A batch vector, the segments already read from one, or nothing for a single graph."""


def check_nodes(x: Tensor, dim: int) -> None:
    """Raise ``ValueError`` unless x is (nodes, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x must have shape (nodes, {dim}), got {tuple(x.shape)}")


def _checked_count(batch: Int[Tensor, "nodes"], graphs: int | None) -> int:
    if len(batch) == 0:
        return graphs or 0
    steps = batch.diff()
    if (steps < 0).any():
        where = int((steps < 0).nonzero()[0]) + 1
        raise ValueError(f"batch must be sorted, got {int(batch[where])} after {int(batch[where - 1])} at node {where}")
    first, last = int(batch[0]), int(batch[-1])
    if first < 0 or (graphs is not None and last >= graphs):
        raise ValueError(
            f"batch must hold graphs from 0 to {'the last' if graphs is None else graphs - 1}, got {batch}"
        )
    if graphs is None and (first > 0 or (steps > 1).any()):
        gap = 0 if first > 0 else int(batch[int((steps > 1).nonzero()[0])]) + 1
        raise ValueError(f"batch must not skip a graph, got no node of graph {gap}; give graphs= if it has none")
    return last + 1 if graphs is None else graphs
