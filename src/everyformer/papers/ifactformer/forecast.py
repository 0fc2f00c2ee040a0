"""From a network to forecasts: scaling, the loss, rollouts, and the pairs and files that training reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

Window = Float[Tensor, "batch time *grid channels"]
Field = Float[Tensor, "batch *grid channels"]
Flow = Float[Tensor, "trajectories time *grid channels"]


class Forecaster(nn.Module):
    """A network between scaled fields, as a map between fields in physical units.

    Takes a window (batch, time, *grid, channels), gives the next field (batch, *grid, channels). Inputs and outputs have
    a mean and a deviation for every channel each, those of ``flow``'s snapshots that can be inputs or outputs.

    Args:
        network: called with the scaled window, and with ``coordinates`` where there are any.
        flow: the fields that are trained on (trajectories, time, *grid, channels).
        coordinates: of the points of each axis (points,).

    Raises:
        ValueError: a flow of fewer than two snapshots.
    """

    mean_in: Tensor
    deviation_in: Tensor
    mean_out: Tensor
    deviation_out: Tensor

    def __init__(self, network: nn.Module, flow: Flow, coordinates: Sequence[Float[Tensor, " points"]] = ()) -> None:
        super().__init__()
        if flow.dim() < 4 or flow.shape[1] < 2:
            raise ValueError(f"flow must be (trajectories, at least 2 times, grid, channels), got {tuple(flow.shape)}")
        self.network, self.axes = network, len(coordinates)
        for side, part in (("in", flow[:, :-1]), ("out", flow[:, 1:])):
            values = part.flatten(0, -2)
            self.register_buffer(f"mean_{side}", values.mean(0))
            self.register_buffer(f"deviation_{side}", values.std(0))
        for axis, where in enumerate(coordinates):
            self.register_buffer(f"axis_{axis}", where)

    def forward(self, window: Window) -> Field:
        scaled = (window - self.mean_in) / self.deviation_in
        coordinates = [self.get_buffer(f"axis_{axis}") for axis in range(self.axes)]
        made = self.network(scaled, coordinates) if coordinates else self.network(scaled)
        return made * self.deviation_out + self.mean_out  # type: ignore[no-any-return]


def relative_error(made: Field, truth: Field) -> Float[Tensor, " batch"]:
    """|made - truth| / |truth| for every field, over all its points and channels.

    Raises:
        ValueError: fields of different shapes.
    """
    if made.shape != truth.shape:
        raise ValueError(f"made must have the shape of truth {tuple(truth.shape)}, got {tuple(made.shape)}")
    return (made - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def rollout(
    network: Callable[[Window], Field],
    window: Window,
    steps: int,
    *,
    every: int = 1,
    broken: Literal["raise", "stop"] = "raise",
) -> Iterator[Field]:
    """Fields that follow a window, each predicted from those before it: every ``every``-th of ``steps``.

    Args:
        network: gives the field that follows a window, in the same units, as :class:`Forecaster`.
        broken: what to do about a field with a value that is not finite.

    Raises:
        ValueError: an argument that cannot be used.
        FloatingPointError: a field is not finite, and ``broken`` is ``"raise"``; the step is named.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be at least 1, got {steps} and {every}")
    if window.dim() < 4:
        raise ValueError(f"window must be (batch, time, grid, channels), got {tuple(window.shape)}")
    if broken not in ("raise", "stop"):
        raise ValueError(f"broken must be 'raise' or 'stop', got {broken!r}")
    return _rolled(network, window, steps, every, broken)


def _rolled(network: Callable[[Window], Field], window: Window, steps: int, every: int, broken: str) -> Iterator[Field]:
    for step in range(1, steps + 1):
        with torch.no_grad():
            field = network(window)
        if not field.isfinite().all():
            if broken == "raise":
                raise FloatingPointError(f"the field is not finite after step {step} of {steps}")
            return
        window = torch.cat([window[:, 1:], field[:, None]], dim=1)
        if step % every == 0:
            yield field


def pairs(flow: Flow, window: int = 1) -> tuple[Window, Field]:
    """Every window of a flow with the field that follows it, trajectory by trajectory in order.

    Raises:
        ValueError: a flow with too few snapshots.
    """
    if not 1 <= window < flow.shape[1]:
        raise ValueError(f"window must be from 1 to {flow.shape[1] - 1} for a flow of {flow.shape[1]}, got {window}")
    inputs = flow.unfold(1, window, 1)[:, :-1].movedim(-1, 2)
    return inputs.flatten(0, 1), flow[:, window:].flatten(0, 1)


def read_flow(path: str | Path, channels: int = 3) -> Float[Tensor, "trajectories time nx ny nz channels"]:
    """The flow of an array (trajectory, time, nx, ny, nz, channel) in the authors' ``.npy`` files, as float32.

    Their fourth channel is no velocity and is left out. Pickled objects are refused.

    Raises:
        ValueError: no such file, or no array of that layout.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must be a .npy file, got {path}")
    # Mapped, not read: with the channels that are not wanted a file may be larger than memory.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 6 or array.dtype.kind != "f":
        raise ValueError(
            f"{path} must hold numbers (trajectory, time, nx, ny, nz, channel), got {array.dtype} {array.shape}"
        )
    if array.shape[-1] < channels:
        raise ValueError(f"{path} must have at least {channels} channels, got {array.shape[-1]}")
    return torch.from_numpy(np.ascontiguousarray(array[..., :channels], dtype=np.float32))
