"""The paper's constructions as modules with set weights: what attention does, done by a virtual node (arXiv 2301.11956).

Every one is an ordinary module: its weights can be looked at, perturbed and trained on from there. None of them needs the
edges of the graph, which are accepted and not read: the messages between graph nodes are zero.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.nn.attention import PerformerAttention

from everyformer.papers.mpnn_gt.attention import FullAttention, LinearAttention, check_denominator
from everyformer.papers.mpnn_gt.model import DeepSetsVN, EquivariantLinear, VirtualNode
from everyformer.papers.mpnn_gt.segments import Batch, Segments, check_nodes


class LinearAttentionAsVN(nn.Module):
    """Linear attention or a Performer as two rounds with a virtual node, exactly (arXiv 2301.11956, section 4).

    Round 1, nodes to virtual node: the message of node j is [phi(k_j) outer v_j, phi(k_j)]; the virtual node sums.
    Round 2, virtual node to nodes: it sends its state (S, z), and node i becomes phi(q_i)^T S / phi(q_i)^T z. The width
    of the virtual node, heads * m * (head_dim + 1), does not depend on the number of nodes.
    """

    def __init__(
        self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Module, features: nn.Module, heads: int
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = query, key, value, out
        self.features = features
        self.heads = heads

    @classmethod
    def from_attention(cls, module: nn.Module) -> LinearAttentionAsVN:
        """The construction with copies of the weights of a ``LinearAttention`` or of PyG's ``PerformerAttention``.

        Raises:
            TypeError: another kind of module.
        """
        module = copy.deepcopy(module)
        if isinstance(module, LinearAttention):
            query, key, value = _split(module.qkv, 3)
            return cls(query, key, value, module.out, module.features, module.heads)
        if isinstance(module, PerformerAttention):
            features = _PerformerFeatures(module.fast_attn)
            out = nn.Sequential(module.attn_out, module.dropout)
            return cls(module.q, module.k, module.v, out, features, module.heads)
        raise TypeError(f"module must be a LinearAttention or a PerformerAttention, got {type(module).__name__}")

    def message(self, x: Float[Tensor, "nodes dim"]) -> Float[Tensor, "nodes width"]:
        """What each node sends to the virtual node."""
        key = self.features(self.key(x).unflatten(-1, (self.heads, -1)))
        value = self.value(x).unflatten(-1, (self.heads, -1))
        product = key.unsqueeze(-1) * value.unsqueeze(-2)
        return torch.cat([product, key.unsqueeze(-1)], dim=-1).flatten(1)

    def update(
        self, x: Float[Tensor, "nodes dim"], received: Float[Tensor, "nodes width"]
    ) -> Float[Tensor, "nodes dim"]:
        """What each node becomes on receiving the virtual node's state."""
        query = self.features(self.query(x).unflatten(-1, (self.heads, -1)))
        state = received.unflatten(-1, (self.heads, query.shape[-1], -1))
        mixed = torch.einsum("nhm,nhmd->nhd", query, state)
        value, weight = mixed[..., :-1], mixed[..., -1:]
        check_denominator(weight, self.features)
        return self.out((value / weight).flatten(1))  # type: ignore[no-any-return]

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes."""
        check_nodes(x, self.query.in_features)
        segments = Segments.of(x, batch, graphs)
        virtual = segments.sum(self.message(x))
        return self.update(x, segments.spread(virtual))


class _PerformerFeatures(nn.Module):
    """The feature map of PyG's Performer: a kernel function of random projections, plus 0.001."""

    projection: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.register_buffer("projection", attention.projection_matrix)
        self.kernel: Any = attention.kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x @ self.projection.T) + 1e-3


def _split(linear: nn.Linear, parts: int) -> list[nn.Linear]:
    """A fused linear map as ``parts`` separate ones."""
    made = []
    for weight, bias in zip(linear.weight.chunk(parts), linear.bias.chunk(parts), strict=True):
        part = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        part.load_state_dict({"weight": weight, "bias": bias})
        made.append(part)
    return made


class SelectAndSend(nn.Module):
    """Two rounds of the deep construction: the virtual node picks one node by its centre, then sends it to all."""

    def __init__(self, centre: Float[Tensor, "dim"], sharpness: float) -> None:
        super().__init__()
        self.centre = nn.Parameter(centre.clone())
        self.sharpness = nn.Parameter(centre.new_tensor(sharpness))

    def forward(self, x: Float[Tensor, "nodes dim"], segments: Segments) -> Float[Tensor, "graphs dim"]:
        """The node nearest to the centre, as a softmax over nodes of -sharpness * squared distance."""
        scores = self.sharpness * (2 * x @ self.centre - x.square().sum(-1))
        return segments.sum(segments.softmax(scores[:, None]) * x)


class SoftmaxAttentionAsVN(nn.Module):
    """Full softmax attention in 2n + 1 rounds with a virtual node of fixed width (arXiv 2301.11956, section 6).

    For each centre the virtual node picks one node and sends it to all; each node adds its kernel value with that node to
    a numerator and a denominator, scaled by the largest logit so far; at the end they are divided. Every graph of a batch
    must have as many nodes as there are centres, and be separated by them.
    """

    def __init__(self, module: FullAttention, centres: Float[Tensor, "n dim"], sharpness: float) -> None:
        super().__init__()
        module = copy.deepcopy(module)
        self.query, self.key, self.value = _split(module.qkv, 3)
        self.out = module.out
        self.heads = module.heads
        self.rounds = nn.ModuleList(SelectAndSend(centre, sharpness) for centre in centres)

    @property
    def depth(self) -> int:
        """Rounds of message passing."""
        return 2 * len(self.rounds) + 1

    @property
    def centres(self) -> Float[Tensor, "n dim"]:
        """The vectors that pick the nodes."""
        dim = self.query.in_features
        return torch.stack([p.centre for p in self._picks()]) if self.rounds else self.query.weight.new_zeros(0, dim)

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
        rounds: int | None = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes; with ``rounds``, what has been summed when so many nodes have been sent.

        Raises:
            ValueError: the centres do not separate the nodes; the pair and the margin are named.
        """
        check_nodes(x, self.query.in_features)
        segments = Segments.of(x, batch, graphs)
        if not torch.compiler.is_compiling():
            separation(x.detach(), self.centres.detach(), segments)
        query = self.query(x).unflatten(-1, (self.heads, -1))
        total = torch.zeros_like(query)
        weight = total.new_zeros(*total.shape[:2], 1)
        top = torch.full_like(weight, -torch.inf)
        for pick in self.rounds[:rounds]:
            sent = pick(x, segments)
            key, value = (
                segments.spread(part(sent)).unflatten(-1, (self.heads, -1)) for part in (self.key, self.value)
            )
            logit = (query * key).sum(-1, keepdim=True) / math.sqrt(query.shape[-1])
            new = torch.maximum(top, logit)
            old, now = (top - new).exp(), (logit - new).exp()
            total, weight, top = total * old + now * value, weight * old + now, new
        return self.out((total / weight).flatten(1))  # type: ignore[no-any-return]

    @torch.no_grad()
    def error_bound(self, x: Float[Tensor, "n dim"]) -> float:
        """A bound on the Euclidean error of every node of one graph, rounding aside.

        The node picked is off by r <= diameter * min(1, (n - 1) exp(-sharpness * margin)). A logit is then off by
        e <= max|q| |Wk| r / sqrt(head_dim), the attention weights by w <= min(2, exp(2 e) - 1) in sum, and the mean of the
        values by |Wv| r + w * (largest distance of a value from their mean). Heads add as squares, the last map multiplies
        by its norm.
        """
        if len(x) < 2:
            return 0.0
        margin = separation(x, self.centres)
        sharpness = min(float(pick.sharpness) for pick in self._picks())
        radius = float(torch.cdist(x, x).max()) * min(1.0, (len(x) - 1) * math.exp(-sharpness * margin))
        squares = 0.0
        for query, wk, wv in zip(
            self.query(x).chunk(self.heads, 1), self._per_head(self.key), self._per_head(self.value), strict=True
        ):
            logit = float(query.norm(dim=1).max() * torch.linalg.matrix_norm(wk, 2)) * radius / math.sqrt(len(wk))
            values = x @ wv.T
            apart = float((values - values.mean(0)).norm(dim=1).max())
            spread = math.expm1(min(2 * logit, 2.0))
            squares += (float(torch.linalg.matrix_norm(wv, 2)) * radius + min(spread, 2.0) * apart) ** 2
        return float(torch.linalg.matrix_norm(self.out.weight, 2)) * math.sqrt(squares)

    def _picks(self) -> list[SelectAndSend]:
        return list(self.rounds)  # type: ignore[arg-type]

    def _per_head(self, linear: nn.Linear) -> tuple[Tensor, ...]:
        return linear.weight.chunk(self.heads)


def softmax_attention_as_vn(
    module: FullAttention, centres: Float[Tensor, "n dim"], sharpness: float
) -> SoftmaxAttentionAsVN:
    """The O(n)-deep construction of full attention, with copies of the weights of ``module``.

    Args:
        centres: one vector per node, nearer to that node than to any other; the nodes themselves always serve.
        sharpness: the error falls as exp(-sharpness * margin), see :func:`separation`.

    Raises:
        TypeError: ``module`` is not a ``FullAttention``.
        ValueError: centres of another shape, or a sharpness that is not positive.
    """
    if not isinstance(module, FullAttention):
        raise TypeError(f"module must be a FullAttention, got {type(module).__name__}")
    if centres.ndim != 2 or centres.shape[1] != module.dim:
        raise ValueError(f"centres must have shape (n, {module.dim}), got {tuple(centres.shape)}")
    if not (sharpness > 0 and math.isfinite(sharpness)):
        raise ValueError(f"sharpness must be above 0, got {sharpness}")
    return SoftmaxAttentionAsVN(module, centres, sharpness)


def separation(
    x: Float[Tensor, "nodes dim"], centres: Float[Tensor, "n dim"], batch: Batch = None, graphs: int | None = None
) -> float:
    """The margin by which each centre scores its own node above any other: the paper's assumption asks for it.

    The score of node j for centre c is 2 x_j.c - |x_j|²; the order of the nodes does not matter. Infinite where there are
    no two nodes in a graph.

    Raises:
        ValueError: a graph whose size differs from the number of centres; a margin that is not above 0, or two centres
            that pick the same node, with the pair and the margin.
    """
    segments = Segments.of(x, batch, graphs)
    padded, real, _ = segments.dense(x)
    sizes = real.sum(1)
    wrong = (sizes != len(centres)).nonzero().flatten()
    if len(wrong):
        g = int(wrong[0])
        raise ValueError(
            f"centres must be one per node, graph {g} has {int(sizes[g])} nodes and {len(centres)} centres"
        )
    if len(centres) < 2:
        return math.inf
    smallest = math.inf
    for graph, nodes in enumerate(padded):
        scores = 2 * centres @ nodes.T - nodes.square().sum(-1)
        (first, second), order = scores.topk(2, dim=1).values.T, scores.topk(2, dim=1).indices
        margin = first - second
        worst = int(margin.argmin())
        if float(margin[worst]) <= 0:
            pair = tuple(sorted(order[worst].tolist()))
            raise ValueError(
                f"centres must separate the nodes: nodes {pair} of graph {graph} tie for centre {worst}, margin "
                f"{float(margin[worst]):.3g}"
            )
        picked, times = order[:, 0].unique(return_counts=True)
        if len(picked) < len(centres):
            node = int(picked[times.argmax()])
            both = tuple((order[:, 0] == node).nonzero().flatten().tolist()[:2])
            lost = next(j for j in range(len(centres)) if j not in set(picked.tolist()))
            behind = float(min(scores[c, lost] - scores[c, node] for c in both))
            raise ValueError(
                f"centres must separate the nodes: centres {both} of graph {graph} both pick node {node} and none picks "
                f"node {lost}, margin {behind:.3g}"
            )
        smallest = min(smallest, float(margin.min()))
    return smallest


class OwnUpdate(nn.Module):
    """A convolution whose messages are zero: every node is updated from itself alone."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """New nodes."""
        return self.linear(x)  # type: ignore[no-any-return]


class DeepSetsAsVN(nn.Module):
    """DeepSets as layers of :class:`VirtualNode`, exactly (arXiv 2301.11956, section 5).

    An equivariant linear layer A x_i + B reduce(x) + c is a convolution without messages (A, c) beside a virtual node that
    pools before it and updates by B.
    """

    def __init__(self, layers: list[VirtualNode], after: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.after = nn.ModuleList(after)

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes."""
        segments = Segments.of(x, batch, graphs)
        none = torch.zeros(2, 0, dtype=torch.long, device=x.device) if edge_index is None else edge_index
        for layer, after in zip(self.layers, self.after, strict=True):
            x = after(layer(x, none, None, segments))
        return x


def deep_sets_as_vn(module: DeepSetsVN) -> DeepSetsAsVN:
    """The layers of ``module`` as message passing with a virtual node, with copies of its weights.

    Raises:
        TypeError: ``module`` is not a ``DeepSetsVN``.
    """
    if not isinstance(module, DeepSetsVN):
        raise TypeError(f"module must be a DeepSetsVN, got {type(module).__name__}")
    module = copy.deepcopy(module)
    layers = [as_virtual_node(linear) for linear in module.linears]  # type: ignore[arg-type]
    after: list[nn.Module] = [nn.Sequential(module.activation, norm) for norm in module.norms]
    return DeepSetsAsVN(layers, after)


def as_virtual_node(linear: EquivariantLinear) -> VirtualNode:
    """One equivariant linear layer as a :class:`VirtualNode` of width max(dim_in, dim_out).

    Where the two widths differ, inputs are padded with zeros and only the first ``dim_out`` outputs mean anything.
    """
    linear = copy.deepcopy(linear)
    width = max(linear.own.in_features, linear.own.out_features)
    own, pooled = (_padded(part, width) for part in (linear.own, linear.pooled))
    return VirtualNode(OwnUpdate(own), width, aggregate=linear.how, update=pooled, pool="before")


def _padded(linear: nn.Linear, width: int) -> nn.Linear:
    """The same map between vectors of ``width`` numbers, the surplus ones zero."""
    down, right = width - linear.out_features, width - linear.in_features
    weight = linear.weight
    wide = nn.Linear(width, width, bias=linear.bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        wide.weight.copy_(F.pad(weight, (0, right, 0, down)))
        if linear.bias is not None:
            wide.bias.copy_(F.pad(linear.bias, (0, down)))
    return wide
