"""AdaptFormer and deep visual prompts (VPT) as PEFT tuners; importing this module registers both with PEFT.

Nothing in the network is replaced: each block gets one more child, which acts through hooks on the block. The names of
the frozen weights stay as they are, and everything else is PEFT's: ``get_peft_model``, ``save_pretrained``,
``PeftModel.from_pretrained``, several adapters by name, ``disable_adapter``, ``modules_to_save`` for the new head.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import peft.mapping
import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from everyformer.papers.adaptformer.model import AdaptMLP, check_options
from everyformer.parts import checkpoints

# In a block, the norm whose input is x', and the module whose output is MLP(LN(x')): timm; ViT, VideoMAE and CLIP of
# transformers.
LAYOUTS = (
    ("norm2", "mlp"),
    ("layernorm_after", "mlp"),
    ("layernorm_after", "output.dropout"),
    ("layer_norm2", "mlp"),
)
# timm's blocks that have the norm after the MLP: x' is what the MLP itself gets.
POST_NORM = ("ResPostBlock", "EvaBlockPostNorm")


class PeftType(str, enum.Enum):
    """The names under which PEFT knows the two tuners; its own enumeration is closed."""

    ADAPTFORMER = "ADAPTFORMER"
    VPT = "VPT"


@dataclasses.dataclass
class _BlockConfig(PeftConfig):
    """What both tuners take.

    Args:
        target_modules: blocks to adapt, as names, ends of names or a regular expression; all by default.
        exclude_modules: blocks to leave as they are.
        modules_to_save: modules that are trained and saved in full, as ``["head"]``.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None


@dataclasses.dataclass
class AdaptFormerConfig(_BlockConfig):
    """AdaptFormer: ``peft.get_peft_model(model, AdaptFormerConfig(modules_to_save=["head"]))``.

    Args:
        bottleneck, scale, layernorm, dropout: as :class:`AdaptMLP` has them.
        sequential: the branch comes after the MLP, ``h + branch(h)``, instead of beside it.

    Raises:
        ValueError: an option that :class:`AdaptMLP` does not take.
    """

    bottleneck: int = 64
    scale: float | str = 0.1
    layernorm: str = "none"
    dropout: float = 0.1
    sequential: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.ADAPTFORMER
        check_options(self.bottleneck, self.scale, self.layernorm, self.dropout)


@dataclasses.dataclass
class VPTConfig(_BlockConfig):
    """Deep visual prompts (arXiv 2203.12119), the paper's baseline: trained tokens before each block's, dropped after it.

    Args:
        tokens: prompts of each block.

    Raises:
        ValueError: ``tokens`` below 1.
    """

    tokens: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.VPT
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")


class _BlockLayer(nn.Module, BaseTunerLayer):
    """The adapters of one block, by name; they act through hooks until :meth:`detach`."""

    def __init__(self, norm: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self._norm = (norm,)  # in a tuple, so that it is not registered a second time
        self._active_adapter = adapter_name
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def get_base_layer(self) -> nn.Module:
        """The block's norm: PEFT takes an adapter's device and type from it, and the width is its length."""
        return self._norm[0]

    def detach(self) -> None:
        """Leave the block as it was."""
        for hook in self.hooks:
            hook.remove()

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter."""
        getattr(self, self.adapter_layer_names[0])[adapter_name] = self.build(config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def build(self, config: Any) -> nn.Module | nn.Parameter:
        """A new adapter's weights."""
        raise NotImplementedError

    def active(self) -> list[str]:
        """The adapters that act now."""
        present = getattr(self, self.adapter_layer_names[0])
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in present]


class AdaptFormerLayer(_BlockLayer):
    """A block's AdaptMLPs: they read x' on its way into the norm, and add to the block's output."""

    adapter_layer_names = ("adaptmlp",)
    other_param_names = ("sequential",)

    def __init__(self, block: nn.Module, norm: str, mlp: str, adapter_name: str) -> None:
        super().__init__(block.get_submodule(norm), adapter_name)
        self.adaptmlp = nn.ModuleDict()
        self.sequential: dict[str, bool] = {}
        self._seen: Tensor | None = None
        source = block.get_submodule(mlp if type(block).__name__ in POST_NORM else norm)
        self.hooks = [
            source.register_forward_pre_hook(self._see),
            block.get_submodule(mlp).register_forward_hook(self._after_mlp),
            # First of the block's hooks, so that those who record the block's output record the adapted one.
            block.register_forward_hook(self._after_block, prepend=True),
        ]

    def update_layer(self, adapter_name: str, config: AdaptFormerConfig) -> None:
        """Add an adapter."""
        self.sequential[adapter_name] = config.sequential
        super().update_layer(adapter_name, config)

    def build(self, config: AdaptFormerConfig) -> AdaptMLP:
        """A new branch, as wide as the block."""
        (dim,) = self.weight.shape
        return AdaptMLP(
            dim, config.bottleneck, scale=config.scale, layernorm=config.layernorm, dropout=config.dropout  # type: ignore[arg-type]
        )  # fmt: skip

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]

    def _after_mlp(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        for name in self.active():
            if self.sequential[name]:
                output = self._added(name, output, output)
        return output

    def _after_block(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        seen, self._seen = self._seen, None
        for name in self.active():
            if not self.sequential[name]:
                output = self._added(name, seen, output)
        return output

    def _added(self, name: str, x: Any, output: Tensor) -> Tensor:
        """The output with an adapter's part; PEFT may keep the adapter in a wider type than the block."""
        branch: Any = self.adaptmlp[name]
        added = branch(x.to(branch.down.weight.dtype))
        return output + added.to(output.dtype).reshape(output.shape)


class VPTLayer(_BlockLayer):
    """A block's prompts: put before its tokens on the way in, taken off on the way out."""

    adapter_layer_names = ("prompts",)

    def __init__(self, block: nn.Module, norm: str, mlp: str, adapter_name: str) -> None:
        super().__init__(block.get_submodule(norm), adapter_name)
        self.prompts = nn.ParameterDict()
        self.hooks = [
            block.register_forward_pre_hook(self._before_block),
            block.register_forward_hook(self._after_block, prepend=True),
        ]

    def build(self, config: VPTConfig) -> nn.Parameter:
        """New prompts (1, tokens, dim)."""
        (dim,) = self.weight.shape
        return nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, config.tokens, dim)))

    def _before_block(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        if x.ndim != 3:
            raise ValueError(f"prompts need blocks on tokens (batch, tokens, dim), got an input {tuple(x.shape)}")
        prompts = [self.prompts[name].to(x.dtype).expand(len(x), -1, -1) for name in self.active()]
        return (torch.cat([*prompts, x], dim=1), *inputs[1:])

    def _after_block(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output[:, sum(self.prompts[name].shape[1] for name in self.active()) :]


class _BlockTuner(BaseTuner):
    """Gives the blocks of a network their layers.

    ``child`` is the layer's name in a block; ``prefix``, by which PEFT knows the weights, that of the weights in it.
    """

    child: str
    tuner_layer_cls: Any

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: Any) -> PeftConfig:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        if peft_config.target_modules is None:
            found = [name for name, module in model.named_modules() if _layout(module)]
            if not found:
                raise ValueError(
                    f"model must have blocks with an MLP after a norm, named as one of {LAYOUTS}; "
                    f"found no such MLP in {type(model).__name__}"
                )
            peft_config.target_modules = found

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
        layer = getattr(target, self.child, None)
        if layer is None:
            layout = _layout(target)
            if layout is None:
                raise ValueError(
                    f"target_modules must name blocks with an MLP after a norm, named as one of {LAYOUTS}; "
                    f"found no such MLP in {current_key}, a {type(target).__name__}"
                )
            layer = self.tuner_layer_cls(target, *layout, adapter_name)
            target.add_module(self.child, layer)
        layer.update_layer(adapter_name, peft_config)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            raise ValueError(
                f"{type(self).__name__} cannot be merged into the weights: use unload() for the base model"
            )
        for module in list(self.model.modules()):
            if isinstance(layer := getattr(module, self.child, None), self.tuner_layer_cls):
                layer.detach()
                delattr(module, self.child)
        super()._unload_and_optionally_merge(False, *args, **kwargs)
        return self.model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """A file does not say under which name an adapter was trained."""
        block, mark, rest = key.rpartition(f".{cls.child}.")
        if not mark:
            return super()._remove_adapter_name_from_key(key, adapter_name)  # type: ignore[no-any-return]
        parts = rest.split(".")
        return block + mark + ".".join(parts[:1] + parts[1 + (parts[1] == adapter_name) :])

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's, but a file of other blocks or of another width is an error that names the first key."""
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        ours = {
            key: tensor.shape
            for key, tensor in model.state_dict().items()
            if f".{cls.child}." in key and cls._remove_adapter_name_from_key(key, adapter_name) != key
        }
        checkpoints.check({key: tensor for key, tensor in found.items() if f".{cls.child}." in key}, ours)
        return found  # type: ignore[no-any-return]


class AdaptFormerModel(_BlockTuner):
    """The tuner that PEFT builds from an :class:`AdaptFormerConfig`."""

    child, prefix = "adaptformer", "adaptmlp"
    tuner_layer_cls = AdaptFormerLayer


class VPTModel(_BlockTuner):
    """The tuner that PEFT builds from a :class:`VPTConfig`."""

    child, prefix = "vpt", "prompts"
    tuner_layer_cls = VPTLayer


def _layout(block: nn.Module) -> tuple[str, str] | None:
    """The names of the norm and the MLP in a block, or None where it has no such pair."""
    for norm, mlp in LAYOUTS:
        try:
            if getattr(block.get_submodule(norm), "weight", None) is not None and block.get_submodule(mlp):
                return norm, mlp
        except AttributeError:
            continue
    return None


def _register() -> None:
    """What PEFT's register_peft_method does, which takes only names of PEFT's own enumeration."""
    mapping: Any = peft.mapping
    for kind, config, tuner in (
        (PeftType.ADAPTFORMER, AdaptFormerConfig, AdaptFormerModel),
        (PeftType.VPT, VPTConfig, VPTModel),
    ):
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = tuner.prefix
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
        mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = tuner


_register()
