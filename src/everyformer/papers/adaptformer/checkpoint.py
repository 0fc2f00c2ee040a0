"""State dicts of ShoufaChen/AdaptFormer (``models/vit_image.py``, ``models/vit_video.py``), to ours and back.

Their picture model becomes timm's vision transformer, their video model transformers' VideoMAE, each with our adapter or
prompts. :func:`load_adapter` and :func:`export_adapter` carry only the adapters, to and from any network with our tuner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import peft
import timm.models
import torch
from peft import PeftModel
from torch import Tensor, nn

from everyformer.papers.adaptformer.tuner import AdaptFormerConfig, AdaptFormerLayer, VPTConfig
from everyformer.parts import checkpoints

VIT = {"img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"}
VIDEO = {"all_frames", "tubelet_size"}
TUNING = {"ffn_adapt", "ffn_num", "ffn_option", "ffn_adapter_layernorm_option", "ffn_adapter_scalar"}
OPTIONS = VIT | VIDEO | TUNING | {"global_pool", "vpt_on", "vpt_num"}
# Our keys to theirs, one rule after the other.
BRANCH = (
    (r"\.adaptformer\.adaptmlp\.\w+\.", ".adaptmlp."),
    (r"(\.adaptmlp\.)norm\.", r"\1adapter_layer_norm_before."),
    (r"(\.adaptmlp\.(down|up))\.", r"\1_proj."),
)
PICTURE = (
    (r"^blocks\.(\d+)\.vpt\.prompts\.\w+$", r"embeddings.\1"),
    (r"\.mlp\.(fc\d)\.", r".\1."),
    (r"^head\.modules_to_save\.\w+\.", "head."),
)
CLIP = (
    (r"^videomae\.encoder\.layer\.(\d+)\.vpt\.prompts\.\w+$", r"embeddings.\1"),
    (r"^videomae\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^videomae\.encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.(q|v)\w+\.bias$", r".attn.\1_bias"),
    (r"\.attention\.attention\.(q|k|v)\w+\.weight$", r".attn.\1_proj.weight"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"\.output\.dense\.", ".fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^classifier\.(modules_to_save\.\w+\.)?", "head."),
)


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> PeftModel:
    """The network with its adapters or prompts, as a PEFT model whose adapter is called ``default``.

    Args:
        state: the state dict; the head may have the batch norm that the authors put before it to train.
        config: the authors' options of the network and of its tuning; with ``all_frames`` it is a video model.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), an unknown option.
    """
    model = _build(config, batch_norm="head.1.weight" in state)
    network = model.get_base_model()
    ours = network.state_dict()
    theirs = {key: _as_theirs(key, tensor) for key, tensor in ours.items()}
    checkpoints.check(state, {name: part.shape for parts in theirs.values() for name, part in parts.items()})
    for key, parts in theirs.items():
        tensors = [state[name] for name in parts]
        ours[key] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    network.load_state_dict(ours, strict=True)
    return model


def export(model: PeftModel) -> dict[str, Tensor]:
    """The whole network under the authors' names, a trained head in place of the one that it replaced."""
    return {
        name: part.contiguous()
        for key, tensor in model.get_base_model().state_dict().items()
        if ".original_module." not in key
        for name, part in _as_theirs(key, tensor).items()
    }


def load_adapter(model: PeftModel, state: Mapping[str, Tensor], adapter_name: str = "default") -> None:
    """Put the authors' ``blocks.<n>.adaptmlp.*`` into an adapter of the model; other keys of ``state`` are left alone.

    The n-th adapted block of the model takes the n-th block of the state.

    Raises:
        ValueError: no such adapter, or a missing, unexpected or misshapen key (the first is named).
    """
    ours = _adapters(model, adapter_name)
    found = {key: tensor for key, tensor in state.items() if ".adaptmlp." in key}
    checkpoints.check(found, {name: tensor.shape for name, tensor in ours.items()})
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(found[name])


def export_adapter(model: PeftModel, adapter_name: str = "default") -> dict[str, Tensor]:
    """An adapter under the authors' names, ``blocks.<n>.adaptmlp.*``.

    Raises:
        ValueError: no such adapter.
    """
    return {name: tensor.detach().clone() for name, tensor in _adapters(model, adapter_name).items()}


def replay(model: PeftModel, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' ``logits`` of ``x``, pictures (batch, 3, height, width) or clips (batch, 3, frames, height, width)."""
    if "all_frames" in config:
        return {"logits": model(inputs["x"].transpose(1, 2)).logits}
    return {"logits": model(inputs["x"])}


def _build(config: Mapping[str, Any], batch_norm: bool) -> PeftModel:
    unknown = sorted(set(config) - OPTIONS)
    if unknown:
        raise ValueError(f"config has the unknown option {unknown[0]}")
    if bool(config.get("ffn_adapt")) == bool(config.get("vpt_on")):
        raise ValueError("config must set one of ffn_adapt and vpt_on")
    network = _video_network(config) if "all_frames" in config else _picture_network(config)
    if batch_norm:
        name = "classifier" if "all_frames" in config else "head"
        head = getattr(network, name)
        setattr(network, name, nn.Sequential(nn.BatchNorm1d(head.in_features, affine=False, eps=1e-6), head))
    if config.get("vpt_on"):
        return peft.get_peft_model(network, VPTConfig(tokens=config.get("vpt_num", 1)))
    scalar = config.get("ffn_adapter_scalar", "0.1")
    option = config.get("ffn_option", "parallel")
    if option not in ("parallel", "sequential"):
        raise ValueError(f"config['ffn_option'] must be parallel or sequential, got {option!r}")
    tuning = AdaptFormerConfig(
        bottleneck=config.get("ffn_num", 64),
        scale="learnable" if scalar == "learnable_scalar" else float(scalar),
        layernorm=config.get("ffn_adapter_layernorm_option", "none"),
        sequential=option == "sequential",
    )
    return peft.get_peft_model(network, tuning)


def _picture_network(config: Mapping[str, Any]) -> nn.Module:
    pool: Any = "avg" if config.get("global_pool") else "token"
    options: Any = {key: config[key] for key in VIT & set(config)}
    return timm.models.VisionTransformer(**options, global_pool=pool)


def _video_network(config: Mapping[str, Any]) -> nn.Module:
    import transformers  # only videos need it

    dim = config.get("embed_dim", 768)
    options: Any = {
        "image_size": config.get("img_size", 224),
        "patch_size": config.get("patch_size", 16),
        "num_channels": config.get("in_chans", 3),
        "num_labels": config.get("num_classes", 1000),
        "num_frames": config["all_frames"],
        "tubelet_size": config.get("tubelet_size", 2),
        "hidden_size": dim,
        "num_hidden_layers": config.get("depth", 12),
        "num_attention_heads": config.get("num_heads", 12),
        "intermediate_size": int(dim * config.get("mlp_ratio", 4)),
        "qkv_bias": config.get("qkv_bias", False),
        "layer_norm_eps": 1e-6,
    }
    network: Any = transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**options))
    network.fc_norm.eps = 1e-6
    return network  # type: ignore[no-any-return]


def _as_theirs(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """What one of our tensors is called in the authors' state dict, where timm's query, key and value are three."""
    for pattern, name in (*BRANCH, *(CLIP if key.startswith(("videomae.", "classifier.")) else PICTURE)):
        key = re.sub(pattern, name, key)
    if ".attn.qkv." not in key:
        return {key: tensor}
    return {key.replace("qkv", f"{part}_proj"): piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)}


def _adapters(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """An adapter's own weights, by the authors' names; the blocks are numbered in the order of the network."""
    layers = [module for module in model.modules() if isinstance(module, AdaptFormerLayer)]
    if not any(adapter_name in layer.adaptmlp for layer in layers):
        raise ValueError(f"adapter_name must be an AdaptFormer of the model, got {adapter_name!r}")
    return {
        _as_theirs(f"blocks.{index}.adaptformer.adaptmlp.{adapter_name}.{key}", tensor).popitem()[0]: tensor
        for index, layer in enumerate(layers)
        for key, tensor in layer.adaptmlp[adapter_name].named_parameters()
    }
