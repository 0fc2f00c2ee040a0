"""Frozen layers that hold the parameters of many tasks, and batches in which each row belongs to another task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from everyformer.papers.diffscaler.method import Affiner, Condition

BASE = "__base__"  # PEFT's name for no adapter in a mixed batch


class Mix:
    """Which rows of a batch belong to which task, and how rows sorted by task go back to their places."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._made: dict[torch.device, tuple[dict[str, Tensor], Tensor]] = {}

    def on(self, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """The rows of each task, and the order back; made once for a device."""
        if device not in self._made:
            rows = {
                task: torch.tensor([row for row, name in enumerate(self.names) if name == task])
                for task in dict.fromkeys(self.names)
            }
            order = torch.cat(list(rows.values())).argsort()
            self._made[device] = {task: index.to(device) for task, index in rows.items()}, order.to(device)
        return self._made[device]


class DiffScalerLayer(nn.Module, BaseTunerLayer):
    """A frozen layer with the parameters of each task beside it."""

    adapter_layer_names = ("affiner",)

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.affiner = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.mix: Mix | None = None
        self._active_adapter = adapter_name
        self._kept: tuple[Any, ...] = ()  # the frozen weight and bias while a task is merged

    def update_layer(self, adapter_name: str, config: Any, device: torch.device) -> None:
        """Add a task."""
        layer: Any = self.base_layer
        self.affiner[adapter_name] = (
            Condition(layer, classes=config.classes)
            if isinstance(layer, nn.Embedding)
            else Affiner(layer, rank=config.rank)
        )
        # A norm without weights does not say where it is.
        self._move_adapter_to_device_of_base_layer(
            adapter_name, None if getattr(layer, "weight", None) is not None else device
        )
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.disable_adapters:
            self.unmerge()
        y: Tensor = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return y
        if self.mix is not None:
            return self._mixed(x, y, self.mix)
        name = self._task(self.active_adapters)
        return y if name is None else self.affiner[name](self.base_layer, x, y)

    def _mixed(self, x: Tensor, y: Tensor, mix: Mix) -> Tensor:
        if len(x) != len(mix.names):
            raise ValueError(
                f"adapter_names must name a task for each of the {len(x)} rows, got {len(mix.names)} names"
            )
        rows, order = mix.on(x.device)
        if len(rows) == 1:
            (name,) = rows
            return self.affiner[name](self.base_layer, x, y) if name in self.affiner else y
        parts = [
            self.affiner[name](self.base_layer, x[index], y[index]) if name in self.affiner else y[index]
            for name, index in rows.items()
        ]
        return torch.cat(parts)[order]

    def _task(self, names: Sequence[str]) -> str | None:
        """The one of ``names`` that the layer has."""
        present = [name for name in names if name in self.affiner]
        if len(present) > 1:
            raise ValueError(f"one task can act at a time, got {present}; mix tasks in a batch by adapter_names")
        return present[0] if present else None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write a task, the active one by default, into the layer's weights; :meth:`unmerge` brings the old ones back.

        Raises:
            ValueError: several tasks are to be merged, or ``safe_merge`` finds a weight that is not finite.
        """
        name = self._task(self.active_adapters if adapter_names is None else adapter_names)
        if name is None:
            return
        layer: Any = self.base_layer
        folded = self.affiner[name].folded(layer)  # type: ignore[operator]
        if safe_merge and not all(bool(part.isfinite().all()) for part in folded if part is not None):
            raise ValueError(f"adapter {name!r} gives weights that are not finite")
        self._kept = (layer.weight, getattr(layer, "bias", None))
        layer.weight = nn.Parameter(folded[0], requires_grad=False)
        if folded[1] is not None:
            layer.bias = nn.Parameter(folded[1], requires_grad=False)
        self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """The frozen weights, to the bit; nothing where no task is merged."""
        if self.merged:
            layer: Any = self.base_layer
            layer.weight = self._kept[0]
            if hasattr(layer, "bias"):
                layer.bias = self._kept[1]
            self._kept = ()
            self.merged_adapters.clear()


@contextlib.contextmanager
def tasks(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside, row ``i`` of every batch belongs to the task ``names[i]``; ``"__base__"`` is the network without a task.

    Takes a PEFT model or the network in it, as a pipeline of diffusers holds it. A pipeline with guidance doubles its
    batch: give it the names twice over. Gradients flow as usual, and with gradient checkpointing the backward pass
    belongs inside too.

    Raises:
        TypeError: ``names`` is a string.
        ValueError: no names, an unknown task, a task that is merged into the weights, or (in the forward pass) another
            number of rows.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a list with a task for each row, got the string {names!r}")
    layers = [module for module in model.modules() if isinstance(module, DiffScalerLayer)]
    others = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    known = {BASE}.union(*(layer.affiner for layer in layers))
    if not names or set(names) - known:
        raise ValueError(f"names must be among {sorted(known)}, one for each row, got {list(names)}")
    if merged := merged_task(model):
        raise ValueError(f"tasks cannot be mixed while {merged!r} is merged into the weights: unmerge it first")
    before, mix = [layer.mix for layer in layers], Mix(names)
    hooks = [module.register_forward_pre_hook(partial(_name, names=mix.names), with_kwargs=True) for module in others]
    try:
        for layer in layers:
            layer.mix = mix
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.mix = old
        for hook in hooks:
            hook.remove()


def merged_task(model: nn.Module) -> str | None:
    """The task that is merged into the weights, if any."""
    layers = (module for module in model.modules() if isinstance(module, DiffScalerLayer))
    return next((layer.merged_adapters[0] for layer in layers if layer.merged), None)


def frozen(module: nn.Module) -> nn.Module:
    """The layer itself, without what holds its tasks."""
    return module.base_layer if isinstance(module, DiffScalerLayer) else module


def _name(_: nn.Module, args: Any, kwargs: dict[str, Any], *, names: list[str]) -> Any:
    """What PEFT's modules_to_save want in a mixed batch."""
    return args, {**kwargs, "adapter_names": names}
