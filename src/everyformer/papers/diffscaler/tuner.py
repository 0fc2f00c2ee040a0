"""Diffscaler as a PEFT tuner; importing this module registers it with PEFT.

The rest is PEFT's: ``get_peft_model``, ``add_adapter``, ``save_pretrained``, ``PeftModel.from_pretrained``,
``merge_adapter``, ``unmerge_adapter``, ``merge_and_unload``, ``disable_adapter``. A task is an adapter; tasks are mixed in
one batch by ``model(..., adapter_names=[...])`` or by ``tasks``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any

import peft.mapping
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from everyformer.papers.diffscaler.layer import DiffScalerLayer, frozen, merged_task, tasks
from everyformer.papers.diffscaler.method import ADAPTABLE, NORMS, check_classes
from everyformer.parts import checkpoints


class PeftType(str, enum.Enum):
    """The name under which PEFT knows the tuner; its own enumeration is closed."""

    DIFFSCALER = "DIFFSCALER"


@dataclasses.dataclass
class DiffScalerConfig(PeftConfig):
    """Diffscaler: ``peft.get_peft_model(network, DiffScalerConfig(rank=4))`` (arXiv 2404.09976).

    Args:
        rank: of the subspace that a task adds to each linear layer and convolution; 0 for scales and shifts alone.
        classes: how many the task has, for embeddings of classes; ``None`` starts from the network's own embedding.
        target_modules: layers, as names, ends of names or a regular expression. By default every linear layer, convolution,
            embedding and norm with weights.
        exclude_modules: layers to leave as they are.
        modules_to_save: modules that are trained and saved in full.

    Raises:
        ValueError: ``rank`` below 0 or ``classes`` below 1.
    """

    rank: int = 4
    classes: int | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.DIFFSCALER
        if self.rank < 0:
            raise ValueError(f"rank must be at least 0, got {self.rank}")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes must be at least 1, got {self.classes}")


class DiffScalerModel(BaseTuner):
    """The tuner that PEFT builds from a :class:`DiffScalerConfig`."""

    prefix = "affiner"
    tuner_layer_cls = DiffScalerLayer

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: Any) -> PeftConfig:
        return peft_config

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        if peft_config.target_modules is not None:
            return check_target_module_exists(peft_config, key)
        every = copy.copy(peft_config)
        every.target_modules = ".*"
        found = check_target_module_exists(every, key)
        return self._adaptable(key) and not self._weightless(key) if found else found

    def _adaptable(self, key: str) -> bool:
        """Whether the module is a layer that can have tasks, and in none that reads its weights without a call."""
        parent = self.model.get_submodule(key.rpartition(".")[0])
        return isinstance(frozen(self.model.get_submodule(key)), ADAPTABLE) and not isinstance(
            parent, nn.MultiheadAttention | BaseTunerLayer | AuxiliaryTrainingWrapper
        )

    def _weightless(self, key: str) -> bool:
        """A norm without weights, as adaptive norms have it: merging would have to give it some.

        The layer that makes the adaptive shift and scale has a task's own.
        """
        module = frozen(self.model.get_submodule(key))
        return isinstance(module, NORMS) and module.weight is None

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Find what does not fit before anything is changed."""
        self._check_merge_allowed()
        for key, module in model.named_modules():
            parent = model.get_submodule(key.rpartition(".")[0])
            if not key or isinstance(parent, BaseTunerLayer) or not self._check_target_module_exists(peft_config, key):
                continue
            if not self._adaptable(key):
                raise ValueError(
                    f"target_modules must name layers among {', '.join(kind.__name__ for kind in ADAPTABLE)}, "
                    f"got {key}, a {type(module).__name__} in a {type(parent).__name__}"
                )
            layer = frozen(module)
            if isinstance(layer, nn.Embedding):
                check_classes(layer, peft_config.classes)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, DiffScalerLayer) else DiffScalerLayer(target, adapter_name)
        layer.update_layer(adapter_name, peft_config, next(self.model.parameters()).device)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Under every name that the parent has for the child: diffusers' Downsample2D has two."""
        for name in [name for name, module in parent._modules.items() if module is child]:
            setattr(parent, name, new_module)

    def _check_merge_allowed(self) -> None:
        if merged := merged_task(self.model):
            raise ValueError(f"{merged!r} is merged into the weights: unmerge it first")

    def _check_names(self, adapter_names: Sequence[str] | None) -> None:
        if unknown := sorted(set(adapter_names or ()) - set(self.peft_config)):
            raise ValueError(f"adapter_names must be among {sorted(self.peft_config)}, got {unknown[0]!r}")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """PEFT's; raises ``ValueError`` for an unknown task and where one is merged already."""
        self._check_merge_allowed()
        self._check_names(adapter_names)
        try:
            super().merge_adapter(adapter_names, safe_merge)
        except ValueError:  # in some layer, after others were merged
            self.unmerge_adapter()
            raise

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self.merge_adapter(adapter_names, safe_merge)  # a trial, before anything is taken apart
        self.unmerge_adapter()
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(
        self, *_: Any, adapter_names: Sequence[str] | None = None, **__: Any
    ) -> Iterator[None]:
        with contextlib.nullcontext() if adapter_names is None else tasks(self.model, adapter_names):
            yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{cls.prefix}.{adapter_name}.", f".{cls.prefix}.")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's, but a file of other layers, another width or rank is an error that names the first key."""
        found: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        names: dict[nn.Parameter, list[str]] = {}
        for key, parameter in model.named_parameters(remove_duplicate=False):
            if f".{cls.prefix}.{adapter_name}." in key:
                names.setdefault(parameter, []).append(key)
        for keys in names.values():
            # A layer with two names is in the file under one of them.
            held = [found[key] for key in keys if key in found][:1]
            found.update((key, tensor) for tensor in held for key in keys)
        ours = {key: parameter.shape for parameter, keys in names.items() for key in keys}
        checkpoints.check({key: tensor for key, tensor in found.items() if f".{cls.prefix}." in key}, ours)
        return found


def _register() -> None:
    """What PEFT's register_peft_method does, which takes only names of PEFT's own enumeration."""
    mapping: Any = peft.mapping
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.DIFFSCALER] = DiffScalerModel.prefix
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.DIFFSCALER] = DiffScalerConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[PeftType.DIFFSCALER] = DiffScalerModel


_register()
