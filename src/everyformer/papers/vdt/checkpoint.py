"""State dicts of RERV/VDT (``models.py``), to ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from everyformer.papers.vdt.diffusion import masked_diffusion_loss
from everyformer.papers.vdt.model import VDT
from everyformer.parts import checkpoints

# Our keys to theirs, one rule after the other.
NAMES = (
    (r"^embed\.", "x_embedder.proj."),
    (r"^places$", "pos_embed"),
    (r"^moments$", "time_embed"),
    (r"^label\.", "y_embedder.embedding_table."),
    (r"\.over_time\.norm\.", ".temporal_norm1."),
    (r"\.over_time\.attention\.", ".temporal_attn."),
    (r"\.over_time\.out\.", ".temporal_fc."),
    (r"\.attention\.", ".attn."),
    (r"(attn)\.out\.", r"\1.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"^adaptive\.", "final_layer.adaptive."),
    (r"\.adaptive\.", ".adaLN_modulation."),
    (r"^final\.", "final_layer.linear."),
    (r"^time\.", "t_embedder.mlp."),
)
OPTIONS = {
    "input_size": "image_size",
    "patch_size": "patch",
    "in_channels": "channels",
    "num_frames": "frames",
    "hidden_size": "dim",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "num_classes": "classes",
    "class_dropout_prob": "label_dropout",
    "learn_sigma": "learn_sigma",
}
AUTHORS_CLASSES = 1000


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> VDT:
    """The authors' model with the authors' weights.

    Args:
        state: the state dict.
        config: the authors' options; those left out are as in their constructor.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), an unknown option, ``mode`` other than
            ``video``.
    """
    unknown = sorted(set(config) - set(OPTIONS) - {"mode"})
    if unknown:
        raise ValueError(f"config has the unknown option {unknown[0]}")
    if config.get("mode", "video") != "video":
        raise ValueError(f"config['mode'] must be 'video', got {config['mode']!r}")
    # Built without storage: every tensor of it comes from the state.
    with torch.device("meta"):
        given = {OPTIONS[key]: value for key, value in config.items() if key != "mode"}
        model = VDT(**{"classes": AUTHORS_CLASSES, **given})
    ours = {key: _as_theirs(key, tensor, model.patch) for key, tensor in model.state_dict().items()}
    checkpoints.check(state, {name: tensor.shape for name, tensor in ours.values()})
    model.load_state_dict({key: _as_ours(key, state[name]) for key, (name, _) in ours.items()}, assign=True)
    return model.requires_grad_()


def export(model: VDT) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    named = (_as_theirs(key, tensor, model.patch) for key, tensor in model.state_dict().items())
    return {name: tensor.contiguous() for name, tensor in named}


def replay(model: VDT, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' ``forward`` of ``x`` at ``t``, and with ``x0``, ``noise`` and ``mask`` their loss and its parts.

    Their forward pass knows no labels: whatever the number of classes, every video is of the first.
    """

    def network(video: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        return model(video, timesteps, torch.zeros(len(video), dtype=torch.long))  # type: ignore[no-any-return]

    found = {"forward": network(inputs["x"], inputs["t"].float())}
    if "x0" in inputs:
        loss = masked_diffusion_loss(
            network, inputs["x0"], inputs["mask"].bool(), noise=inputs["noise"], timesteps=inputs["t"]
        )
        found |= {"loss": loss.total, "loss_mse": loss.mse, "loss_vb": loss.bound}
    return found


def _as_theirs(key: str, tensor: Tensor, patch: int) -> tuple[str, Tensor]:
    name = key
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    if key == "embed.weight":
        return name, rearrange(tensor, "d (c p q) -> d c p q", p=patch, q=patch)
    return name, tensor[None] if key in ("places", "moments") else tensor


def _as_ours(key: str, tensor: Tensor) -> Tensor:
    if key == "embed.weight":
        tensor = tensor.flatten(1)
    return (tensor[0] if key in ("places", "moments") else tensor).clone()
