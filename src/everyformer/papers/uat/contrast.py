"""What the construction is compared with: a hard partition by sharp attention, and the same layer to be trained."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.uat.model import UniversalTransformer
from everyformer.papers.uat.ridge import TooLarge
from everyformer.papers.uat.target import Bound, Map, target_of


class HardPartition(nn.Module):
    """Attention from the whole sequence to one stored token per cell of a grid: the nearest cell's value, when sharp.

    Logits are -sharpness |x - c|² on the unit cube, up to a term that all cells share. ``width`` is the number of cells.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, tokens: int, dim: int, out_dim: int, keys: Tensor, values: Tensor, low: Tensor, high: Tensor
    ) -> None:
        super().__init__()
        self.tokens, self.dim, self.out_dim, self.width = tokens, dim, out_dim, len(keys)
        self.keys, self.values = nn.Parameter(keys), nn.Parameter(values)
        self.sharpness = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens out_dim"]:
        unit = ((x - self.low) / (self.high - self.low)).flatten(1)
        logits = self.sharpness * (2 * unit @ self.keys.T - self.keys.square().sum(-1))
        return (logits.softmax(-1) @ self.values).unflatten(1, (self.tokens, self.out_dim))


def hard_partition(
    f: Map,
    tokens: int,
    dim: int,
    out_dim: int,
    per_axis: int,
    sharpness: float,
    domain: tuple[Bound, Bound] = (0.0, 1.0),
    memory: int = 2**30,
) -> HardPartition:
    """The construction by cells: ``per_axis`` cells along each coordinate, routed by attention of this sharpness.

    Where cells meet, the answer jumps from one value to the next as ``sharpness`` grows, so that the largest error stays
    however sharp the attention; only more cells lower it.

    Raises:
        TooLarge: the cells need more than ``memory`` bytes.
    """
    target = target_of(f, tokens, dim, out_dim, domain)
    cells = per_axis**target.inputs
    needed = 8 * cells * (target.inputs + tokens * out_dim)
    if needed > memory:
        raise TooLarge(f"per_axis={per_axis} needs more memory than {memory:,} bytes", cells, needed)
    centres = (torch.arange(per_axis, dtype=torch.float64) + 0.5) / per_axis
    keys = torch.cartesian_prod(*[centres] * target.inputs).reshape(-1, target.inputs)
    model = HardPartition(
        tokens, dim, out_dim, keys.float(), target(keys).float(), target.low.float(), target.high.float()
    )
    with torch.no_grad():
        model.sharpness.fill_(sharpness)
    return model.eval()


def untrained(model: UniversalTransformer) -> UniversalTransformer:
    """The architecture of ``model`` with random weights and one-hot positions, for training."""
    fresh = UniversalTransformer(
        model.tokens, model.dim, model.out_dim, model.width, model.gather, (model.low, model.high), model.low.dtype
    )
    fresh.load_state_dict({**fresh.state_dict(), "position": model.position})
    return fresh
