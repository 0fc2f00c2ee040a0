"""Message passing with a virtual node (arXiv 2301.11956): a wrapper for any convolution, and the stacks built from it.

The virtual node is a vector per graph that reads the sum of all nodes and is added to all of them. Pooling and gathering
by the batch vector takes the place of an extra node with two edges to everybody.
"""

from __future__ import annotations

import inspect
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINEConv, SAGEConv
from torch_geometric.nn.norm import LayerNorm as GraphLayerNorm

from everyformer.papers.mpnn_gt.segments import REDUCTIONS, Batch, Segments, check_nodes

ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU, "none": nn.Identity}


def check_graph(x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, dim: int, edge_dim: int | None = None) -> None:
    """Raise ``ValueError`` or ``TypeError`` where a graph does not have the shapes a layer was built for."""
    check_nodes(x, dim)
    if edge_index.dtype is not torch.long:
        raise TypeError(f"edge_index must be int64, got {edge_index.dtype}")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must have shape (2, edges), got {tuple(edge_index.shape)}")
    edges = edge_index.shape[1]
    if edge_dim is not None and (edge_attr is None or tuple(edge_attr.shape) != (edges, edge_dim)):
        got = None if edge_attr is None else tuple(edge_attr.shape)
        raise ValueError(f"edge_attr must have shape ({edges}, {edge_dim}), got {got}")
    if edge_attr is not None and edge_attr.shape[0] != edges:
        raise ValueError(f"edge_attr must have one row per edge, {edges}, got {edge_attr.shape[0]}")


def check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raise ``ValueError`` that names the argument when ``value`` is not accepted."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


def virtual_mlp(
    dim: int, hidden: int | None = None, norm: Literal["layer", "batch"] = "layer", dropout: float = 0.0
) -> nn.Sequential:
    """The usual update of a virtual node: twice linear, norm, ReLU, with ``hidden`` (default ``dim``) in between.

    The authors' norm is ``"batch"``, over the graphs of a batch: in training it needs at least two of them.
    """
    check_choice("norm", norm, ("layer", "batch"))
    make = nn.LayerNorm if norm == "layer" else nn.BatchNorm1d
    wide = hidden or dim
    first = (nn.Linear(dim, wide), make(wide), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(wide, dim), make(dim), nn.ReLU(), nn.Dropout(dropout))


class _Call(nn.Module):
    """A convolution called with the edge features under the name it gives them."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        names = inspect.signature(conv.forward).parameters
        self.conv = conv
        self.edges = next((name for name in ("edge_attr", "edge_weight") if name in names), None)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The nodes, and the edges: new ones if the convolution gives some."""
        width = getattr(self.conv, "edge_dim", None)
        if edge_attr is not None and self.edges is None:
            raise ValueError(f"edge_attr must be None, {type(self.conv).__name__} takes none")
        if isinstance(width, int) and edge_attr is not None and edge_attr.shape[-1] != width:
            raise ValueError(f"edge_attr must have width {width}, got {tuple(edge_attr.shape)}")
        given = {} if self.edges is None else {self.edges: edge_attr}
        out = self.conv(x, edge_index, **given)
        return out if isinstance(out, tuple) else (out, edge_attr)


class VirtualNode(nn.Module):
    """Any convolution followed by a virtual node that reads all nodes of a graph and is added to each.

    With x the input, h = conv(x) and v the virtual node's state: t = pool(h) + v, v' = update(t), x' = h + v'. Time and
    memory are linear in nodes and edges.

    Args:
        conv: a ``MessagePassing``, or a module ``(x, edge_index[, edge_attr])`` that gives nodes or (nodes, edges).
        dim: width of nodes and virtual node.
        aggregate: ``"sum"``, ``"mean"``, ``"max"``, ``"min"``, or ``"softmax"``: a learned weighted mean.
        update: module from (graphs, dim) to the same; :func:`virtual_mlp` by default.
        pool: read the nodes ``"after"`` the convolution (the authors' networks) or ``"before"`` (OGB, DeepSets).
        residual: v' = v + update(t).

    Raises:
        ValueError: an unknown ``aggregate`` or ``pool``; in ``forward``, inputs of another shape, a batch vector that
            is unsorted or has gaps, batch norm with a single graph in training.
    """

    def __init__(
        self,
        conv: nn.Module,
        dim: int,
        aggregate: str = "sum",
        update: nn.Module | None = None,
        pool: Literal["after", "before"] = "after",
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_choice("aggregate", aggregate, (*REDUCTIONS, "softmax"))
        check_choice("pool", pool, ("after", "before"))
        self.call = _Call(conv)
        self.dim = dim
        self.aggregate = aggregate
        self.update = virtual_mlp(dim) if update is None else update
        self.before = pool == "before"
        self.residual = residual
        self.score = nn.Linear(dim, 1) if aggregate == "softmax" else None

    @property
    def conv(self) -> nn.Module:
        """The convolution inside."""
        return self.call.conv

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Int[Tensor, "2 edges"],
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Nodes with a virtual node that starts at zero; (nodes, edges) if the convolution gives edges too."""
        nodes, edges, _ = self.step(x, None, edge_index, edge_attr, batch, graphs)
        return nodes if edges is None or edges is edge_attr else (nodes, edges)

    def step(
        self,
        x: Float[Tensor, "nodes dim"],
        virtual: Float[Tensor, "graphs dim"] | None,
        edge_index: Int[Tensor, "2 edges"],
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Nodes, edges and the virtual node's new state, for stacks that carry it from layer to layer."""
        check_graph(x, edge_index, edge_attr, self.dim)
        segments = Segments.of(x, batch, graphs)
        nodes, edge_attr = self.call(x, edge_index, edge_attr)
        pooled = self._pool(x if self.before else nodes, segments)
        _check_batch_norm(self.update, segments.count)
        new = self.update(pooled if virtual is None else pooled + virtual)
        if self.residual and virtual is not None:
            new = new + virtual
        return nodes + segments.spread(new), edge_attr, new

    def _pool(self, x: Tensor, segments: Segments) -> Tensor:
        if self.score is None:
            return segments.reduce(x, self.aggregate)
        return segments.sum(segments.softmax(self.score(x)) * x)


def _check_batch_norm(update: nn.Module, graphs: int) -> None:
    if graphs == 1 and any(isinstance(m, nn.BatchNorm1d) and m.training for m in update.modules()):
        raise ValueError("batch must hold two graphs or more for an update with batch norm, got 1; use norm='layer'")


class GatedGCN(nn.Module):
    """Gated graph convolution over nodes and edges of width ``dim`` (arXiv 1711.07553).

    e_ij = D x_i + E x_j + C e; x_i' = A x_i + sum_j s(e_ij) B x_j / (sum_j s(e_ij) + 1e-6), i the target, s the
    sigmoid; then batch norm, ReLU, dropout and the residual, for nodes and edges alike.
    """

    def __init__(self, dim: int, dropout: float = 0.0, residual: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.residual = residual
        self.nodes = nn.Linear(dim, 4 * dim)  # A, B, D, E in one product
        self.edges = nn.Linear(dim, dim)  # C
        self.norm_nodes = nn.BatchNorm1d(dim)
        self.norm_edges = nn.BatchNorm1d(dim)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Int[Tensor, "2 edges"],
        edge_attr: Float[Tensor, "edges dim"],
        batch: Batch = None,
    ) -> tuple[Float[Tensor, "nodes dim"], Float[Tensor, "edges dim"]]:
        """New nodes and new edges."""
        check_graph(x, edge_index, edge_attr, self.dim, edge_dim=self.dim)
        source, target = edge_index
        own, value, to, out_of = self.nodes(x).chunk(4, dim=-1)
        edges = self.edges(edge_attr) + to.index_select(0, target) + out_of.index_select(0, source)
        gate = edges.sigmoid()
        both = torch.cat([gate * value.index_select(0, source), gate], dim=1)
        total, weight = both.new_zeros(x.shape[0], 2 * self.dim).index_add(0, target, both).chunk(2, dim=1)
        nodes = self.drop(self.norm_nodes(own + total / (weight + 1e-6)).relu())
        edges = self.drop(self.norm_edges(edges).relu())
        return (x + nodes, edge_attr + edges) if self.residual else (nodes, edges)


class ConvLayer(nn.Module):
    """A convolution, ReLU, dropout and a residual: the layer around GCN, SAGE and GINE."""

    def __init__(self, conv: nn.Module, dropout: float = 0.0, residual: bool = True) -> None:
        super().__init__()
        self.call = _Call(conv)
        self.drop = nn.Dropout(dropout)
        self.residual = residual

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Int[Tensor, "2 edges"],
        edge_attr: Tensor | None = None,
        batch: Batch = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes."""
        nodes = self.drop(self.call(x, edge_index, edge_attr)[0].relu())
        return x + nodes if self.residual else nodes


def convolution(name: str, dim: int, dropout: float = 0.0, residual: bool = True) -> nn.Module:
    """The layer called ``"gcn"``, ``"sage"``, ``"gine"`` or ``"gatedgcn"``; the last two read edges of width ``dim``."""
    check_choice("conv", name, ("gcn", "sage", "gine", "gatedgcn"))
    if name == "gatedgcn":
        return GatedGCN(dim, dropout, residual)
    if name == "gine":
        conv: nn.Module = GINEConv(nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)))
    else:
        conv = GCNConv(dim, dim) if name == "gcn" else SAGEConv(dim, dim)
    return ConvLayer(conv, dropout, residual)


class VirtualNodeNetwork(nn.Module):
    """A stack of convolutions with one virtual node whose state goes from layer to layer (arXiv 2301.11956).

    The state starts at a learned vector, zero at first; the last layer has no virtual node after it.

    Args:
        dim: width of nodes, edges and virtual node.
        layers: convolutions, at least 1.
        conv: ``"gcn"``, ``"sage"``, ``"gine"`` or ``"gatedgcn"``.
        virtual: without, the same stack is plain message passing.
        residual: of the convolutions.
        dropout: of the convolutions and the update.
        hidden, norm: of the update, see :func:`virtual_mlp`; the OGB reference has ``hidden=2 * dim``.
        aggregate, pool, virtual_residual: see :class:`VirtualNode`.
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        conv: str = "gatedgcn",
        virtual: bool = True,
        residual: bool = True,
        dropout: float = 0.0,
        hidden: int | None = None,
        norm: Literal["layer", "batch"] = "batch",
        aggregate: str = "sum",
        pool: Literal["after", "before"] = "after",
        virtual_residual: bool = False,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        self.dim = dim
        *inner, last = (convolution(conv, dim, dropout, residual) for _ in range(layers))
        if virtual:
            inner = [
                VirtualNode(layer, dim, aggregate, virtual_mlp(dim, hidden, norm, dropout), pool, virtual_residual)
                for layer in inner
            ]
        self.layers = nn.ModuleList([*inner, last])
        self.initial = nn.Parameter(torch.zeros(1, dim)) if virtual else None

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Int[Tensor, "2 edges"],
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes."""
        return self.forward_with_edges(x, edge_index, edge_attr, batch, graphs)[0]

    def forward_with_edges(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Int[Tensor, "2 edges"],
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """New nodes and edges."""
        check_graph(x, edge_index, edge_attr, self.dim)
        segments = Segments.of(x, batch, graphs)
        virtual = None
        if self.initial is not None:
            virtual = self.initial.expand(segments.count, -1)
            x = x + self.initial
        for layer in self.layers:
            if isinstance(layer, VirtualNode):
                x, edge_attr, virtual = layer.step(x, virtual, edge_index, edge_attr, segments)
            else:
                out = layer(x, edge_index, edge_attr)
                x, edge_attr = out if isinstance(out, tuple) else (out, edge_attr)
        return x, edge_attr


class EquivariantLinear(nn.Module):
    """y_i = A x_i + B reduce_j(x_j) + c: the linear maps of a set that do not care about its order (arXiv 1703.06114)."""

    def __init__(self, dim_in: int, dim_out: int, reduce: str = "mean") -> None:
        super().__init__()
        check_choice("reduce", reduce, REDUCTIONS)
        self.how = reduce
        self.own = nn.Linear(dim_in, dim_out)
        self.pooled = nn.Linear(dim_in, dim_out, bias=False)

    def forward(self, x: Float[Tensor, "nodes dim_in"], segments: Segments) -> Float[Tensor, "nodes dim_out"]:
        """New nodes."""
        return self.own(x) + segments.spread(self.pooled(segments.reduce(x, self.how)))


class DeepSetsVN(nn.Module):
    """A virtual node as DeepSets layers: equivariant linear, activation, batch norm (arXiv 2301.11956, section 5).

    Reads no edges. Statistics of the batch norm in training are of the nodes alone; the authors' also count their
    padding.

    Args:
        dim: width of nodes.
        layers: how many, at least 1.
        reduce: ``"mean"``, ``"sum"``, ``"max"`` or ``"min"``.
        activation: ``"relu"``, ``"elu"`` or ``"none"``.
        norm: with the batch norms.
    """

    def __init__(
        self, dim: int, layers: int = 1, reduce: str = "mean", activation: str = "relu", norm: bool = True
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        check_choice("activation", activation, tuple(ACTIVATIONS))
        self.dim = dim
        self.linears = nn.ModuleList(EquivariantLinear(dim, dim, reduce) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) if norm else nn.Identity() for _ in range(layers))
        self.activation = ACTIVATIONS[activation]()

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (nodes, {self.dim}), got {tuple(x.shape)}")
        segments = Segments.of(x, batch, graphs)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = norm(self.activation(linear(x, segments)))
        return x


class GPSLayer(nn.Module):
    """Local message passing and a global branch side by side, then a feed-forward part (arXiv 2205.12454).

    h = norm(x + local(x)) + norm(x + global(x)); out = norm(h + W2 relu(W1 h)). :class:`GatedGCN` brings its own
    residual, so x is not added to it again.

    Args:
        local: a convolution, or ``None``.
        global_: module ``(x, batch=...)`` that gives nodes: :class:`DeepSetsVN`, ``FullAttention``,
            ``LinearAttention``; or ``None``.
        dim: width of nodes; the feed-forward part is twice as wide inside.
        norm: ``"batch"``, ``"layer"`` (over all nodes and features of a graph, as the authors have it) or ``"none"``.
        dropout: on both branches and in the feed-forward part.

    Raises:
        ValueError: an unknown norm, or neither branch.
    """

    def __init__(
        self, local: nn.Module | None, global_: nn.Module | None, dim: int, norm: str = "batch", dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("batch", "layer", "none"))
        if local is None and global_ is None:
            raise ValueError("local and global_ must not both be None")
        make = {"batch": nn.BatchNorm1d, "layer": GraphLayerNorm, "none": lambda dim: nn.Identity()}[norm]
        self.dim = dim
        self.own_residual = isinstance(local, GatedGCN) and local.residual
        self.call = None if local is None else _Call(local)
        self.global_ = global_
        self.norm_local = None if local is None else make(dim)
        self.norm_global = None if global_ is None else make(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)
        self.norm_out = make(dim)
        self.dropout = dropout

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Int[Tensor, "2 edges"],
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """New nodes; (nodes, edges) if the local branch gives edges too."""
        check_graph(x, edge_index, edge_attr, self.dim)
        segments = Segments.of(x, batch, graphs)
        branches, edges = [], edge_attr
        if self.call is not None:
            near, edges = self.call(x, edge_index, edge_attr)
            near = near if self.own_residual else x + self._drop(near)
            branches.append(_normed(self.norm_local, near, segments))
        if self.global_ is not None:
            far = x + self._drop(self.global_(x, batch=segments))
            branches.append(_normed(self.norm_global, far, segments))
        hidden = branches[0] if len(branches) == 1 else branches[0] + branches[1]
        wide = self._drop(self.up(hidden).relu())
        out = _normed(self.norm_out, hidden + self._drop(self.down(wide)), segments)
        return out if edges is None or edges is edge_attr else (out, edges)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _normed(norm: nn.Module | None, x: Tensor, segments: Segments) -> Tensor:
    assert norm is not None
    return norm(x, segments.index, segments.count) if isinstance(norm, GraphLayerNorm) else norm(x)  # type: ignore[no-any-return]
