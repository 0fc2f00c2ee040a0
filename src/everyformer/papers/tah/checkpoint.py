"""Weights of thu-nics/TaH, to ours and back.

Their folders hold three files: ``model.safetensors`` (the language model under transformers' names),
``lora/adapter_model.safetensors`` (PEFT's names) and ``iter_decider.bin``. Here they are one state dict, the decider's
keys behind ``iter_decider.``; :func:`read_folder` makes one of a folder, without unpickling anything but tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from everyformer.papers.tah.config import TaHConfig
from everyformer.papers.tah.model import TaHForCausalLM
from everyformer.parts import checkpoints

THRESHOLD = "iter_decider.threshold"
LORA = re.compile(r"^base\.(.*)\.lora_([ab])$")
# Our keys of the decider to theirs, one rule after the other.
DECIDER = (
    (r"^decider\.read_logits\.", "iter_decider.logits_projection."),
    (r"^decider\.read\.", "iter_decider.combined_projection."),
    (r"^decider\.enter\.", "iter_decider.backbone.input_projection."),
    (r"^decider\.norm\.", "iter_decider.backbone.output_layer.0."),
    (r"^decider\.out\.", "iter_decider.backbone.output_layer.1."),
    (r"^decider\.blocks\.", "iter_decider.backbone.blocks."),
    (r"(blocks\.\d+)\.norm\.", r"\1.layer_norm."),
    (r"(blocks\.\d+)\.up\.", r"\1.mlp.0."),
    (r"(blocks\.\d+)\.down\.", r"\1.mlp.3."),
    (r"(blocks\.\d+)\.skip\.", r"\1.dim_change."),
)


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> TaHForCausalLM:
    """The authors' model in evaluation mode.

    Args:
        state: the state dict, see above.
        config: ``base``, the language model's ``config.json``, and ``tah``, the authors' ``tah_config.json``.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), or options that are not read.
    """
    model = TaHForCausalLM(_config(config)).eval()
    ours = model.state_dict()
    if config["base"].get("tie_word_embeddings"):
        del ours["base.lm_head.weight"]
        state = {key: tensor for key, tensor in state.items() if key != "lm_head.weight"}
    names = {_as_theirs(key): key for key in ours}
    checkpoints.check(state, {**{name: ours[key].shape for name, key in names.items()}, THRESHOLD: ()})
    model.to(next(iter(state.values())).dtype)
    missing, unexpected = model.load_state_dict({key: state[name] for name, key in names.items()}, strict=False)
    assert not unexpected and set(missing) <= {"base.lm_head.weight"}
    # A threshold in the configuration comes before the file's, as in the authors' loader.
    model.threshold = config["tah"]["iter_decider_kwargs"].get("threshold", float(state[THRESHOLD]))
    return model


def export(model: TaHForCausalLM) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    state = {_as_theirs(key): tensor.contiguous() for key, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {**state, THRESHOLD: torch.tensor(model.threshold, dtype=model.dtype)}


def read_folder(folder: str | Path) -> TaHForCausalLM:
    """The model in a folder that the authors' ``save_pretrained`` wrote, such as a download of their published one.

    Raises:
        ValueError: a file that is missing or not as expected.
    """
    folder = Path(folder)
    for name in ("config.json", "tah_config.json", "iter_decider.bin"):
        if not (folder / name).is_file():
            raise ValueError(f"folder must hold {name}, got {folder}")
    state: dict[str, Tensor] = {}
    for file in [*sorted(folder.glob("model*.safetensors")), folder / "lora" / "adapter_model.safetensors"]:
        state |= checkpoints.read(file)
    state |= {f"iter_decider.{key}": tensor for key, tensor in checkpoints.read(folder / "iter_decider.bin").items()}
    configs = {
        name: json.loads((folder / file).read_text(encoding="utf-8"))
        for name, file in (("base", "config.json"), ("tah", "tah_config.json"))
    }
    return load(state, configs)


def replay(model: TaHForCausalLM, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' outputs at real tokens, 0 at padding: by decider, by oracle, in two parts; and gradients."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    real, cut = mask[..., None], ids.shape[1] - 3
    with torch.no_grad():
        whole = model(ids, mask)
        first = model(ids[:, :cut], mask[:, :cut])
        second = model(ids[:, cut:], mask, memory=first.memory)
    oracle = model(ids, mask, depths=inputs["oracle"])
    block = model.base.model.layers[1].self_attn.q_proj
    weights = [block.weight, block.lora_a, model.get_input_embeddings().weight]
    base, adapter, embedding = torch.autograd.grad((oracle.logits * inputs["cotangent"]).sum(), weights)
    return {
        "logits": whole.logits * real,
        "iter_count": whole.depths * mask,
        "continued": second.logits * real[:, cut:],
        "oracle_logits": oracle.logits * real,
        "grad_base": base,
        "grad_adapter": adapter,
        "grad_embedding": embedding,
    }


def _config(config: Mapping[str, Any]) -> TaHConfig:
    theirs = config["tah"]
    decider, adapter = theirs.get("iter_decider_kwargs", {}), theirs.get("adapter_kwargs", {})
    for found, wanted, name in (
        (theirs.get("iter_decider"), "MLPIterDecider", "iter_decider"),
        (theirs.get("embedding_key", "model.embed_tokens"), "model.embed_tokens", "embedding_key"),
        (decider.get("normalize_input", False), False, "iter_decider_kwargs['normalize_input']"),
        (decider.get("expansion_factor", 4), 4, "iter_decider_kwargs['expansion_factor']"),
        (decider.get("topk", 100), theirs.get("input_updater_kwargs", {}).get("topk", 100), "iter_decider_kwargs['topk']"),
        (adapter.get("target_modules"), "all-linear", "adapter_kwargs['target_modules']"),
        (adapter.get("bias", "none"), "none", "adapter_kwargs['bias']"),
    ):  # fmt: skip
        if found != wanted:
            raise ValueError(f"config['tah']: {name} must be {wanted!r}, got {found!r}")
    return TaHConfig(
        AutoConfig.for_model(**config["base"]),
        max_depth=theirs.get("max_iter") or 2,
        top_tokens=decider.get("topk", 100),
        rank=adapter.get("r", 8),
        alpha=adapter.get("lora_alpha", 8),
        lora_dropout=adapter.get("lora_dropout", 0.0),
        threshold=decider.get("threshold", 0.5),
        decider_layers=decider.get("hidden_states_layer_nums", (16, 20, 24, 28)),
        decider_widths=decider.get("hidden_dims", (256, 512, 256)),
        decider_dropout=decider.get("dropout_rate", 0.3),
    )


def _as_theirs(key: str) -> str:
    if found := LORA.match(key):
        return f"base_model.model.{found[1]}.lora_{found[2].upper()}.weight"
    for pattern, name in DECIDER:
        key = re.sub(pattern, name, key)
    return key.removeprefix("base.")
