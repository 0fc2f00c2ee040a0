"""A step of IFactFormer beside the solver and a Fourier neural operator, and its cost over the length of an axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.lab.channel import ChannelFlow
from everyformer.lab.measure import forward_pass, gradient_pass
from everyformer.papers.ifactformer.model import IFactFormer
from everyformer.papers.ifactformer.rivals import FNO

INTERVAL = 0.4  # time between snapshots


class Everywhere(nn.Module):
    """Attention between all points of a grid, of the same width and as often: what the factors stand for."""

    def __init__(self, dim: int, heads: int, iterations: int) -> None:
        super().__init__()
        self.lift, self.project = nn.Linear(3, dim), nn.Linear(dim, 3)
        self.layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.iterations = iterations

    def forward(self, u: Tensor) -> Tensor:
        x = self.lift(u.flatten(1, -2))
        for _ in range(self.iterations):
            x = self.layer(x)
        return self.project(x).view(u[:, 0].shape)  # type: ignore[no-any-return]


def training_step(network: nn.Module, *inputs: object) -> Callable[[], None]:
    """Loss and gradients."""
    return gradient_pass(network, lambda: network(*inputs).square().mean())


def cases(quick: bool, device: str) -> Iterator[Case]:
    """A channel of 12 x 21 x 12 points, and longer ones along x; ``quick`` takes fewer points and iterations."""
    grid, solved, iterations = ((8, 9, 8), (8, 17, 8), 2) if quick else ((12, 21, 12), (24, 41, 24), 3)

    def flow(points: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        axes = [torch.linspace(0, 1, count, device=device) for count in points]
        return torch.randn(1, 1, *points, 3, device=device), axes

    with torch.device(device):
        parallel, chained = (
            IFactFormer(dim=36, heads=2, head_dim=12, iterations=iterations, attention=attention).eval()
            for attention in ("parallel", "chained")
        )
        fno = FNO(3, modes=(6, 8, 6), width=5).eval()
        everywhere = Everywhere(36, 2, iterations).eval()
    solver = ChannelFlow(solved, reynolds=1800.0, dt=INTERVAL / 14, device=device)
    start = solver.initial(1, torch.Generator().manual_seed(0))
    u, axes = flow(grid)
    note = f"{' x '.join(map(str, grid))} points, width 36, {iterations} iterations, float32"
    yield Case(
        "one snapshot of a channel ahead",
        forward_pass(parallel, u, axes),
        {
            f"solver on {' x '.join(map(str, solved))} points": lambda: solver.step(start, round(INTERVAL / solver.dt)),
            "IFactFormer-o": forward_pass(chained, u, axes),
            "FNO": forward_pass(fno, u),
        },
        3.0,
        note,
    )
    yield Case(
        "training step",
        training_step(parallel, u, axes),
        {"IFactFormer-o": training_step(chained, u, axes), "FNO": training_step(fno, u)},
        None,
        note,
    )
    for factor in (1, 2) if quick else (1, 2, 4, 8):
        longer = (factor * grid[0], *grid[1:])
        u, axes = flow(longer)
        peers = {"IFactFormer-o": forward_pass(chained, u, axes)}
        if factor <= 2:
            peers["attention between all points"] = forward_pass(everywhere, u)
        yield Case(
            f"x {factor} as long",
            forward_pass(parallel, u, axes),
            peers,
            None,
            f"{' x '.join(map(str, longer))} points",
        )
