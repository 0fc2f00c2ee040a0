"""Speed of one layer (forward and backward) beside PyG's virtual node, GPS layer and Performer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, GPSConv, SAGEConv
from torch_geometric.nn.attention import PerformerAttention
from torch_geometric.transforms import VirtualNode as VirtualNodeTransform

from everyformer.lab.bench import Case
from everyformer.papers.mpnn_gt.attention import LinearAttention, RandomFeatures
from everyformer.papers.mpnn_gt.data import lattice
from everyformer.papers.mpnn_gt.model import DeepSetsVN, GPSLayer, VirtualNode

DIM, HEADS = 64, 4


def step(call: Callable[..., Any], *inputs: Any) -> Callable[[], None]:
    """Forward and backward of ``call(*inputs)``, gradients of the first input and of the weights."""
    x = inputs[0].detach().requires_grad_()

    def run() -> None:
        x.grad = None
        out = call(x, *inputs[1:])
        out.sum().backward()

    return run


def cases(quick: bool, device: str) -> Iterator[Case]:
    """One graph: a lattice with four neighbours, of 4,096 and (unless ``quick``) 65,536 nodes."""
    for side in (64,) if quick else (64, 256):
        nodes = side * side
        x = torch.randn(nodes, DIM, device=device)
        edges = lattice(side, side)[0].to(device)
        note = f"one lattice of {nodes:,} nodes, width {DIM}, forward and backward"
        for name, conv in (("gcn", GCNConv), ("sage", SAGEConv)):
            ours = VirtualNode(conv(DIM, DIM), DIM, update=nn.Identity()).to(device)
            yield Case(
                f"virtual_node_{name}_{nodes}",
                step(ours, x, edges),
                {"PyG transform + conv": _transformed(conv(DIM, DIM).to(device), x, edges)},
                1.3,
                note,
            )
        gps = GPSLayer(SAGEConv(DIM, DIM), DeepSetsVN(DIM), DIM).to(device)
        peers: dict[str, Callable[[], Any]] = {}
        kinds = ("performer", "multihead") if nodes <= 4096 else ("performer",)
        for kind in kinds:
            options = {"head_channels": DIM // HEADS} if kind == "performer" else {}
            peer = GPSConv(DIM, SAGEConv(DIM, DIM), HEADS, attn_type=kind, attn_kwargs=options).to(device)
            peers[f"PyG GPSConv, {kind}"] = step(peer, x, edges)
        yield Case(f"gps_layer_{nodes}", step(gps, x, edges), peers, 1.0, note)
        # As many random features as PyG's Performer has rows.
        performer = PerformerAttention(DIM, HEADS, head_channels=DIM // HEADS).to(device)
        attention = LinearAttention(DIM, HEADS, RandomFeatures(DIM // HEADS, performer.fast_attn.num_rows)).to(device)
        yield Case(
            f"linear_attention_{nodes}",
            step(attention, x),
            {"PyG PerformerAttention": step(lambda x, peer=performer: peer(x[None])[0], x)},
            1.0,
            note,
        )


def _transformed(conv: nn.Module, x: Tensor, edges: Tensor) -> Callable[[], None]:
    """The graph with PyG's extra node and its 2n edges, made once; only the convolution is timed."""
    data = VirtualNodeTransform()(Data(x=x, edge_index=edges))
    return step(conv, data.x, data.edge_index)
