"""Checkpoints of Dream (the base of the paper, known from its public model code) to ours and back.

Dream is Qwen2 without the causal mask, its output shifted by one position. The sampler has no published code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.joint_sampling.generation import dream_schedule, generate
from everyformer.papers.joint_sampling.model import MaskedDiffusionLM
from everyformer.parts import checkpoints
from everyformer.parts.language import rotary

NEEDED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "max_position_embeddings", "mask_token_id",
)  # fmt: skip
# Ours to Dream's inside a layer; several names are rows of one of our matrices.
LAYER: dict[str, tuple[str, ...]] = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    "attention.qkv.bias": tuple(f"self_attn.{part}_proj.bias" for part in "qkv"),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down.weight": ("mlp.down_proj.weight",),
}
OUTSIDE: dict[str, tuple[str, ...]] = {
    "embedding.weight": ("model.embed_tokens.weight",),
    "norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
}
RULES = {"maskgit_plus": "confidence", "entropy": "entropy", "topk_margin": "margin"}  # Dream's names of orders


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> MaskedDiffusionLM:
    """Dream with a state dict's weights; ``config`` as in its ``config.json``.

    Raises:
        ValueError: an option that is missing, or a key that is missing, unexpected or misshapen (the first is named).
    """
    for name in NEEDED:
        if name not in config:
            raise ValueError(f"config must give {name}")
    with torch.device("meta"):
        model = _built(config)
    theirs = {name: shape for parts in _parts(model).values() for name, shape in parts.items()}
    checkpoints.check(state, theirs)
    ours = {
        key: torch.cat([state[name] for name in parts]) if len(parts) > 1 else state[next(iter(parts))]
        for key, parts in _parts(model).items()
    }
    model.load_state_dict(ours, strict=True, assign=True)
    network = model.network
    # Built on the meta device, where no time goes into first weights: what is no weight is made here.
    network.table = rotary(torch.arange(model.sizes.longest), model.sizes.dim // model.sizes.heads, model.sizes.theta)
    return model


def from_dream(path: str | Path) -> MaskedDiffusionLM:
    """Dream from its folder: ``config.json`` and one or more safetensors files.

    Raises:
        ValueError: no such folder or files, or weights that do not fit (see :func:`load`).
    """
    folder = Path(path)
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise ValueError(f"path must be a folder with config.json and safetensors files, got {folder}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state: dict[str, Tensor] = {}
    for file in files:
        state |= checkpoints.read(file)
    return load(state, config)


def export(model: MaskedDiffusionLM) -> dict[str, Tensor]:
    """The weights under Dream's names."""
    ours = model.state_dict()
    found = {}
    for key, parts in _parts(model).items():
        pieces = ours[key].split([shape[0] for shape in parts.values()])
        found.update({name: piece.clone() for name, piece in zip(parts, pieces, strict=True)})
    return found


def replay(model: MaskedDiffusionLM, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Logits as the network gives them and shifted, its states, and what three of Dream's rules write after a prompt."""
    network, ids = model.network, inputs["ids"]
    x = model.embed(ids)
    for block in network.blocks[:-1]:
        before = x = block(x, network.table[:, : ids.shape[1]])
    last = network.norm(model.last_block()(x, network.table[:, : ids.shape[1]]))
    outputs = {"logits": network.head(last), "prediction_logits": model(ids)}
    outputs |= {"last_hidden": last, "before_last_layer": before}
    prompt = inputs["prompt"]
    for rule, order in RULES.items():
        out = generate(
            model, None, prompt, length=prompt.shape[1] + 10, tokens_per_pass=dream_schedule(10, steps=4),
            order=order, temperature=0.0,  # type: ignore[arg-type]
        )  # fmt: skip
        outputs |= {f"generate_{rule}": out.sequences, f"history_{rule}": out.history}
    return outputs


def _built(config: Mapping[str, Any]) -> MaskedDiffusionLM:
    return MaskedDiffusionLM(
        vocabulary=config["vocab_size"],
        dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        hidden=config["intermediate_size"],
        longest=config["max_position_embeddings"],
        mask_token=config["mask_token_id"],
        theta=config.get("rope_theta", 1e6),
        eps=config.get("rms_norm_eps", 1e-6),
        shifted=True,
        tied=False,
        bias=True,
    )


def _parts(model: MaskedDiffusionLM) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each key of ours, Dream's keys and shapes whose rows it holds, in order."""
    sizes = model.sizes
    head_dim = sizes.dim // sizes.heads
    rows = {
        "attention.qkv": [sizes.heads * head_dim, sizes.kv_heads * head_dim, sizes.kv_heads * head_dim],
        "mlp.gate_up": [sizes.hidden, sizes.hidden],
    }
    found = {}
    for key, tensor in model.state_dict().items():
        inner = key.removeprefix("network.")
        names, prefix = OUTSIDE.get(inner, ()), ""
        if inner.startswith("blocks."):
            _, number, inner = inner.split(".", 2)
            names, prefix = LAYER[inner], f"model.layers.{number}."
        counts = rows.get(inner.rpartition(".")[0], [tensor.shape[0]])
        found[key] = {prefix + name: (count, *tensor.shape[1:]) for name, count in zip(names, counts, strict=True)}
    return found
