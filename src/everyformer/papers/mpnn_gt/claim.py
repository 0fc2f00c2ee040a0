"""The claims: two constructions measured, two studies of what a virtual node learns, and how time grows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.growth import exponent
from everyformer.lab.measure import count_flops, count_parameters, median, side_by_side
from everyformer.papers.mpnn_gt import data
from everyformer.papers.mpnn_gt.attention import FullAttention, LinearAttention, RandomFeatures
from everyformer.papers.mpnn_gt.constructions import (
    LinearAttentionAsVN,
    deep_sets_as_vn,
    separation,
    softmax_attention_as_vn,
)
from everyformer.papers.mpnn_gt.model import DeepSetsVN, VirtualNode
from everyformer.papers.mpnn_gt.study import (
    FULL,
    HEADS,
    KINDS,
    PERFORMER,
    PLAIN,
    VIRTUAL,
    Samples,
    Task,
    search,
)

HISTORY, NEAR, FAR = 6, 1, 14
SHARPNESS = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
ROUNDING = 1e-12
SHORT = ["MPNN", "MPNN + VN", "Performer", "full"]


@torch.no_grad()
def construction(job: Job) -> Measurement:
    """Linear attention with random weights beside its virtual node, on random graphs one at a time."""
    graphs = 20 if job.scale == "smoke" else 100
    draw = torch.Generator().manual_seed(job.seed)
    torch.manual_seed(job.seed)
    found: dict[str, list[tuple[int, float]]] = {"linear transformer": [], "Performer": []}
    rounding, double, sets = [], [], []
    for index in range(graphs):
        nodes = int(torch.randint(2, 201, (), generator=draw))
        heads, head_dim = (1, 2, 4)[index % 3], int(torch.randint(2, 17, (), generator=draw))
        kind = ("linear transformer", "Performer")[index % 2]
        dim = heads * head_dim
        features = RandomFeatures(head_dim, seed=index) if kind == "Performer" else None
        target = LinearAttention(dim, heads, features).to(job.device)
        x = torch.randn(nodes, dim, generator=draw).to(job.device)
        edges = torch.randint(nodes, (2, int(torch.randint(0, 4 * nodes, (), generator=draw))), generator=draw)
        edges = edges.to(job.device)
        ours = LinearAttentionAsVN.from_attention(target)
        given = target(x)
        found[kind].append((nodes, _gap(ours(x, edges), given)))
        exact = target.double()(x.double())
        rounding.append(_gap(given.double(), exact))
        double.append(_gap(LinearAttentionAsVN.from_attention(target)(x.double(), edges), exact))
        deep = DeepSetsVN(dim, layers=2, reduce=("mean", "sum", "max")[index % 3]).to(job.device).eval()
        sets.append(_gap(deep_sets_as_vn(deep)(x, edges), deep(x)))
    extras = {
        "largest difference in float64": max(double),
        "DeepSets as virtual nodes: largest difference": max(sets),
        **{f"{kind}: largest difference": max(gap for _, gap in pairs) for kind, pairs in found.items()},
    }
    panel = Panel(
        "Virtual node against linear attention, float32",
        "nodes, in steps of 25",
        "largest difference of outputs",
        {kind: _largest_by_size(pairs) for kind, pairs in found.items()},
        log_y=True,
    )
    return Measurement(max(gap for pairs in found.values() for _, gap in pairs), max(rounding), extras, (panel,))


def _largest_by_size(pairs: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """The largest difference among graphs of similar size."""
    bins: dict[float, float] = {}
    for nodes, gap in sorted(pairs):
        middle = 25.0 * (nodes // 25) + 12.5
        bins[middle] = max(gap, bins.get(middle, 1e-9))
    return list(bins), list(bins.values())


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
def softmax_depth(job: Job) -> Measurement:
    """Full attention beside the deep construction: error against sharpness, with exact and shifted centres, and depth."""
    sizes = (6, 12) if job.scale == "smoke" else (6, 12, 24, 48)
    dim, heads = 8, 2
    torch.manual_seed(job.seed)
    fractions: list[float] = []
    extras: dict[str, float] = {}
    lines: dict[str, tuple[list[float], list[float]]] = {}
    progress: dict[str, tuple[list[float], list[float]]] = {}
    for nodes in sizes:
        target = FullAttention(dim, heads).double().to(job.device)
        x = torch.randn(nodes, dim, dtype=torch.float64, device=job.device)
        wanted = target(x)
        for name, centres in {"exact": x, "shifted": _shifted(x)}.items():
            error, bound = [], []
            for sharpness in SHARPNESS:
                ours = softmax_attention_as_vn(target, centres, sharpness)
                error.append(float((ours(x) - wanted).norm(dim=1).max()))
                bound.append(ours.error_bound(x) + ROUNDING)
            fractions += [e / b for e, b in zip(error, bound, strict=True)]
            extras[f"margin, {nodes} nodes, {name} centres"] = separation(x, centres)
            extras[f"error at sharpness 16, {nodes} nodes, {name} centres"] = error[-1]
            if nodes == 12:
                lines[f"{name} centres: error"] = (SHARPNESS, [max(e, 1e-17) for e in error])
                lines[f"{name} centres: bound"] = (SHARPNESS, bound)
        sharp = softmax_attention_as_vn(target, x, SHARPNESS[-1])
        rounds = list(range(1, nodes + 1))
        left = [float((sharp(x, rounds=r) - wanted).norm(dim=1).max()) for r in rounds]
        progress[f"{nodes} nodes"] = ([2.0 * r + 1 for r in rounds], [max(e, 1e-17) for e in left])
    panels = (
        Panel("Error and bound, 12 nodes", "sharpness", "largest error of a node", lines, log_x=True, log_y=True),
        Panel("Error when so many rounds are done", "rounds", "largest error of a node", progress, log_y=True),
    )
    return Measurement(max(fractions), 1.0, extras, panels)


def _shifted(x: Tensor) -> Tensor:
    """Centres moved off their nodes by 0.2 per number, or by less where that would separate the nodes no more."""
    step = 0.2 * torch.randn_like(x)
    while True:
        try:
            separation(x, x + step)
        except ValueError:
            step = step / 2
        else:
            return x + step


def climate(job: Job) -> Measurement:
    """Message passing with and without a virtual node, Performer and full attention: one and fourteen steps ahead."""
    task = climate_task(job)
    scores = {kind: search(job, "climate", kind, task) for kind in KINDS}
    extras = {f"{kind}: MSE {h} ahead": s.mse[i] for kind, s in scores.items() for i, h in enumerate((NEAR, FAR))}
    extras |= {f"{kind}: parameters": float(score.parameters) for kind, score in scores.items()}
    plain, virtual = scores[PLAIN].mse, scores[VIRTUAL].mse
    extras["relative gain of the virtual node 1 step ahead"] = 1 - virtual[0] / plain[0]
    last = task.test.x[..., HISTORY - 1 : HISTORY]
    for i, horizon in enumerate((NEAR, FAR)):
        extras[f"persistence: MSE {horizon} ahead"] = float((last - task.test.y[..., i : i + 1]).square().mean())
    places = [float(i) for i in range(len(KINDS))]
    # What no forecast can know of the damped oscillator: 1 - decay^(2 * steps) of its variance.
    extras["variance of the global mode that cannot be forecast 14 ahead"] = 1 - data.DECAY ** (2 * FAR)
    lines = {f"{h} ahead": (places, [scores[k].mse[i] for k in KINDS]) for i, h in enumerate((NEAR, FAR))}
    panel = Panel("Test error", "", "MSE", lines, kind="bar", ticks=SHORT)
    return Measurement(virtual[1], plain[1], extras, (panel,))


def climate_task(job: Job) -> Task:
    """Windows of the simulated field: six steps and the place of a node in, two steps of the future out."""
    smoke, paper = job.scale == "smoke", job.scale == "paper"
    side = 8 if smoke else 30 if paper else 16
    runs = (4, 2, 2) if smoke else (40, 10, 20)
    draw = torch.Generator().manual_seed(1000 + job.seed)
    edge_index, attr = data.lattice(side, side)
    where = 2 * math.pi * torch.arange(side) / side
    row, column = torch.meshgrid(where, where, indexing="ij")
    places = torch.stack([row.sin(), row.cos(), column.sin(), column.cos()], -1).flatten(0, 1)
    field = data.advection_diffusion(sum(runs), 60, side, draw)

    def samples(part: Tensor, stride: int) -> Samples:
        windows = part.unfold(1, HISTORY + FAR, stride).flatten(0, 1)
        past, future = windows[..., :HISTORY], windows[..., HISTORY:]
        x = torch.cat([past, places.expand(len(past), -1, -1)], -1)
        size = (len(x), -1, -1)
        y = future[..., [NEAR - 1, FAR - 1]].contiguous()
        return Samples(x, y, edge_index.T.expand(size), attr.expand(size))

    train, validation, test = field.split(runs)
    budget = {"parameters": 1_200_000, "steps": 10_000, "batch": 20} if paper else {"parameters": 20_000, "batch": 8}
    if not paper:
        budget["steps"] = 6 if smoke else 300
    rates = (3e-3,) if smoke else (1e-3, 4e-3)
    return Task(
        samples(train, 1), samples(validation, 8), samples(test, 4), layers=3, conv="gatedgcn", rates=rates, **budget
    )


def long_range(job: Job) -> Measurement:
    """A sum over graphs wider than the layers reach; and, as a control, numbers fetched from one node among many."""
    sums = {kind: search(job, "sum", kind, sum_task(job)) for kind in KINDS}
    fetch = {kind: search(job, "retrieval", kind, retrieval_task(job)) for kind in KINDS}
    extras = {f"{kind}: MSE of the global sum": score.mse[0] for kind, score in sums.items()}
    extras |= {f"{kind}: MSE of retrieval": score.mse[0] for kind, score in fetch.items()}
    extras |= {f"{kind}: parameters": float(score.parameters) for kind, score in sums.items()}
    places = [float(i) for i in range(len(KINDS))]
    lines = {
        name: (places, [scores[kind].mse[0] for kind in KINDS])
        for name, scores in (("global sum", sums), ("retrieval", fetch))
    }
    panel = Panel("Test error (1 is guessing the mean)", "", "MSE", lines, kind="bar", ticks=SHORT)
    return Measurement(sums[VIRTUAL].mse[0], sums[PLAIN].mse[0], extras, (panel,))


def sum_task(job: Job) -> Task:
    """:func:`~.data.global_sum` on rings, random trees and two cliques joined by a path, in equal parts."""
    return _task(job, data.global_sum, nodes=24, steps=250, salt=2000)


def retrieval_task(job: Job) -> Task:
    """:func:`~.data.retrieval` on rings."""
    return _task(job, data.retrieval, nodes=16, steps=400, salt=3000, only_rings=True)


def _task(
    job: Job, make: Callable[..., tuple[Tensor, Tensor]], nodes: int, steps: int, salt: int, only_rings: bool = False
) -> Task:
    smoke = job.scale == "smoke"
    draw = torch.Generator().manual_seed(salt + job.seed)
    shapes = [data.ring(nodes)] * 3
    if not only_rings:
        shapes = [data.ring(nodes), data.cliques_and_path(nodes), data.random_tree(nodes, draw)]
    longest = max(shape.shape[1] for shape in shapes)
    padded = torch.stack([nn.functional.pad(shape, (0, longest - shape.shape[1]), value=-1).T for shape in shapes])

    def samples(graphs: int) -> Samples:
        x, y = make(graphs, nodes, draw)
        return Samples(x, y, padded[torch.arange(graphs) % len(shapes)])

    train, validation, test = (samples(n) for n in ((64, 32, 32) if smoke else (3200, 256, 512)))
    rates = (3e-3,) if smoke else (1e-3, 4e-3)
    steps = 6 if smoke else 4000 if job.scale == "paper" else steps
    return Task(train, validation, test, layers=3, conv="sage", parameters=20_000, steps=steps, batch=32, rates=rates)


def linear_time(job: Job) -> Measurement:
    """Forward time of one layer on one thread against the number of nodes: virtual node, Performer, full attention."""
    smoke = job.scale == "smoke"
    sides = [32, 56, 100] if smoke else [32, 56, 100, 178, 316, 562, 1000]
    quadratic = [500, 1000] if smoke else [1000, 2000, 4000, 8000]
    dim = 32
    torch.manual_seed(job.seed)
    layers: dict[str, nn.Module] = {
        VIRTUAL: VirtualNode(SAGEConv(dim, dim), dim),
        PLAIN: SAGEConv(dim, dim),
        PERFORMER: LinearAttention(dim, HEADS, RandomFeatures(dim // HEADS)),
        FULL: FullAttention(dim, HEADS),
    }
    lines: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in layers}

    def measure(names: tuple[str, ...], nodes: int, edges: Tensor) -> None:
        x = torch.randn(nodes, dim, device=job.device)
        runs = {name: _forward(layers[name].to(job.device).eval(), x, edges.to(job.device)) for name in names}
        for name, times in side_by_side(runs, 3 if nodes > 50_000 else 7, device=job.device).items():
            lines[name][0].append(float(nodes))
            lines[name][1].append(median(times))

    with _one_thread():
        for side in sides:
            measure((VIRTUAL, PLAIN, PERFORMER), side * side, data.lattice(side, side)[0])
        for nodes in quadratic:
            measure((FULL,), nodes, torch.zeros(2, 0, dtype=torch.long))
    extras = {f"{name}: seconds at {xs[-1]:,.0f} nodes": ys[-1] for name, (xs, ys) in lines.items()}
    extras |= {f"{name}: slope": exponent(*lines[name]) for name in (PLAIN, PERFORMER)}
    xs, ys = lines[VIRTUAL]
    extras["virtual node: slope over the last three sizes"] = exponent(xs[-3:], ys[-3:])
    panel = Panel("Time of one layer, forward, one thread", "nodes", "seconds", lines, log_x=True, log_y=True)
    return Measurement(exponent(*lines[VIRTUAL]), exponent(*lines[FULL]), extras, (panel,))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Waiting for other threads would hide how the time of small graphs grows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _forward(layer: nn.Module, x: Tensor, edges: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            layer(x, edges)

    return run


def plan_construction() -> Plan:
    """The largest graph of the construction."""
    return _plan_layer("construction", LinearAttentionAsVN.from_attention(LinearAttention(64, 4)), 200, "one graph")


def plan_softmax_depth() -> Plan:
    """The deepest construction measured."""
    layer = softmax_attention_as_vn(FullAttention(8, 2), torch.randn(48, 8), 16.0)
    return _plan_layer("softmax_depth", layer, 48, f"{layer.depth} rounds on one graph of 48 nodes", layer.centres)


def plan_linear_time() -> Plan:
    """The largest lattice."""
    return _plan_layer("linear_time", VirtualNode(SAGEConv(32, 32), 32), 10_000, "per 10,000 of 1,000,000 nodes")


def plan_climate() -> Plan:
    """One training step on 30 x 30 places."""
    return _plan_task("climate", climate_task, "10,000 steps; the paper's own data must be downloaded from NOAA")


def plan_long_range() -> Plan:
    """One training step of the global sum."""
    return _plan_task("long_range", sum_task, "4,000 steps per model, task and rate")


def _plan_layer(claim: str, layer: nn.Module, nodes: int, notes: str, x: Tensor | None = None) -> Plan:
    dim = next(layer.parameters()).shape[-1]
    given = torch.randn(nodes, dim) if x is None else x.detach()
    none = torch.zeros(2, 0, dtype=torch.long)
    parameters = count_parameters(layer)
    flops = count_flops(lambda: layer(given, none))
    launch = f"everyformer run mpnn_gt.{claim} --scale paper"
    return Plan(parameters, flops, 4 * parameters + 16 * given.numel(), launch, notes)


def _plan_task(claim: str, make: Callable[[Job], Task], notes: str) -> Plan:
    task = make(Job("paper", 0, "cpu", Path()))
    model = task.model(VIRTUAL)
    graphs = 2  # of the batch: FLOPs and activations grow in proportion
    x, _, edges, attr = task.train.pick(torch.arange(graphs))
    held = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = model(x, edges, attr).sum()
        out.backward()

    flops = count_flops(step) * task.batch / graphs
    parameters = count_parameters(model)
    memory = 16 * parameters + held * task.batch / graphs
    launch = f"everyformer run mpnn_gt.{claim} --scale paper --device cuda"
    return Plan(parameters, flops, memory, launch, f"one step at batch {task.batch}; {notes}")
