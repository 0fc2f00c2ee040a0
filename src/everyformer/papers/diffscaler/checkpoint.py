"""State dicts of facebookresearch/DiT (``models.py``), the network that Diffscaler freezes, to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.parts import checkpoints
from everyformer.parts.dit import DiT

# The authors' option, ours, and the authors' default.
SIZES = (
    ("input_size", "image_size", 32),
    ("patch_size", "patch", 2),
    ("in_channels", "channels", 4),
    ("hidden_size", "dim", 1152),
    ("depth", "depth", 28),
    ("num_heads", "heads", 16),
    ("mlp_ratio", "mlp_ratio", 4.0),
    ("num_classes", "classes", 1000),
)
NAMES = {
    "embed": "x_embedder.proj",
    "time.0": "t_embedder.mlp.0",
    "time.2": "t_embedder.mlp.2",
    "label": "y_embedder.embedding_table",
    "adaptive.1": "final_layer.adaLN_modulation.1",
    "final": "final_layer.linear",
}
IN_BLOCK = {
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
    "adaptive.1": "adaLN_modulation.1",
}
GUIDED = 3  # channels of the noise that the authors' guidance reaches, whatever the number of channels


class PublishedDiT(DiT):
    """Our DiT whose positions are weights of the checkpoint; the authors put sines before cosines."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        positions: Any = self.positions
        del self.positions
        self.register_buffer("positions", positions)


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> DiT:
    """Our DiT with the authors' weights; it takes their latents, timesteps from 0 to 999 and labels.

    ``config`` has the authors' options, and their defaults where it lacks one.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), or an option that does not fit.
    """
    model = _build(config)
    theirs = {key: _as_theirs(key, tensor, model) for key, tensor in model.state_dict().items()}
    checkpoints.check(state, {name: tensor.shape for name, tensor in theirs.values()})
    model.load_state_dict({key: _as_ours(key, state[name], model) for key, (name, _) in theirs.items()}, strict=True)
    return model


def export(model: DiT) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    return dict(_as_theirs(key, tensor, model) for key, tensor in model.state_dict().items())


def guided(
    model: DiT,
    x: Float[Tensor, "batch channels height width"],
    t: Int[Tensor, "batch"],
    y: Int[Tensor, "batch"],
    scale: float,
) -> Float[Tensor, "batch out_channels height width"]:
    """The authors' classifier-free guidance: the first half of ``y`` are classes, the second half "no class".

    Both halves get the first half of ``x``. Only the first three channels are guided.
    """
    half = len(x) // 2
    output = model(torch.cat([x[:half], x[:half]]), t, y)
    noise, rest = output[:, :GUIDED], output[:, GUIDED:]
    steered = noise[half:] + scale * (noise[:half] - noise[half:])
    return torch.cat([torch.cat([steered, steered]), rest], dim=1)


def replay(model: DiT, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' ``forward`` of ``x``, ``t`` and ``y``, and their guidance at scale 4 of those named ``cfg_*``."""
    outputs = {"forward": model(inputs["x"], inputs["t"], inputs["y"])}
    if "cfg_x" in inputs:
        outputs["forward_cfg4"] = guided(model, inputs["cfg_x"], inputs["cfg_t"], inputs["cfg_y"], 4.0)
    return outputs


def _build(config: Mapping[str, Any]) -> DiT:
    unknown = sorted(set(config) - {name for name, _, _ in SIZES} - {"learn_sigma", "class_dropout_prob"})
    if unknown:
        raise ValueError(f"config has the unknown option {unknown[0]}")
    if not config.get("class_dropout_prob", 0.1) > 0:
        raise ValueError("config must have class_dropout_prob above 0: our DiT has a row for no class")
    sizes = {ours: config.get(theirs, default) for theirs, ours, default in SIZES}
    outputs = sizes["channels"] * (2 if config.get("learn_sigma", True) else 1)
    return PublishedDiT(**sizes, out_channels=outputs)


def _as_theirs(key: str, tensor: Tensor, model: DiT) -> tuple[str, Tensor]:
    """A weight of ours under the authors' name and in their layout."""
    if key == "positions":
        return "pos_embed", tensor[None]
    module, _, kind = key.rpartition(".")
    if module.startswith("blocks."):
        _, index, inner = module.split(".", 2)
        return f"blocks.{index}.{IN_BLOCK[inner]}.{kind}", tensor
    if key == "embed.weight":
        tensor = rearrange(tensor, "d (c p q) -> d c p q", p=model.patch, q=model.patch)
    if module == "final":
        tensor = rearrange(tensor, "(c p q) ... -> (p q c) ...", p=model.patch, q=model.patch)
    return f"{NAMES[module]}.{kind}", tensor


def _as_ours(key: str, tensor: Tensor, model: DiT) -> Tensor:
    if key == "positions":
        return tensor[0]
    if key == "embed.weight":
        return tensor.flatten(1)
    if key.startswith("final."):
        return rearrange(tensor, "(p q c) ... -> (c p q) ...", p=model.patch, q=model.patch)
    return tensor
