"""State dicts of facebookresearch/maze_navigation_MLMU (``recipe/models/past.py``), to ours and back.

Their other models are transformers' own classes: a GPT-2 of theirs loads into ``GPT2LMHeadModel`` as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.maze_mlmu.method import loss_of
from everyformer.papers.maze_mlmu.model import PAST
from everyformer.parts import checkpoints

# Their options and what ours takes them for; the empty ones say how it is trained.
OPTIONS = {"vocab_size": "vocabulary", "n_layer": "depth", "n_head": "heads", "n_embd": "dim", "bias": "bias",
           "tie_lmhead": "tied", "train_mode": "", "dropout": "", "scale_loss": "", "perm_chunk_size": ""}  # fmt: skip
FIXED = {"attn_sink": False, "stack_enc_dec": True}
NAMES = (
    (r"^embedding\.", "wte."),
    (r"^question$", "wpe.weight"),
    (r"^head\.", "lm_head."),
    (r"^norm\.", "dec.ln_f."),
    (r"^encoder_norm\.", "enc.ln_f."),
    (r"^(enc|dec)oder\.(\d+)\.", r"\1.layers.\2."),
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.mlp_norm\.", ".ln_2."),
    (r"\.up\.", ".mlp.c_fc."),
    (r"\.down\.", ".mlp.c_proj."),
    (r"\.out\.", ".attn.c_proj."),
    (r"\.query\.", ".attn.c_attn."),
    (r"^(dec.*)\.key_value\.", r"\1.attn.c_attn_mem."),
)


def load(state: Mapping[str, Tensor], config: Mapping[str, Any], *, hidden: tuple[int, ...] = ()) -> PAST:
    """The model with these weights.

    Args:
        state: the state dict; keys may begin with ``model.``, as in the authors' Lightning checkpoints.
        config: options of the authors' ``PASTConfig``.
        hidden: mask and padding tokens, as in :class:`PAST`.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), or an option that is not supported.
    """
    for option, value in config.items():
        if option not in OPTIONS and FIXED.get(option) != value:
            raise ValueError(f"config[{option!r}] must be one of {', '.join(OPTIONS)}, or of {FIXED}, got {value!r}")
    options = {OPTIONS[key]: value for key, value in config.items() if OPTIONS.get(key)}
    model = PAST(**{"depth": 12, "heads": 12, "dim": 768, "vocabulary": 50304, **options}, hidden=hidden)
    if all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    checkpoints.check(state, {key: tensor.shape for key, tensor in export(model).items()})
    ours = {}
    for key, tensor in model.state_dict().items():
        name = _name(key)
        if ".key_value." in name:  # an encoder's: behind the query in one matrix
            found = state[name.replace("key_value", "attn.c_attn")][-len(tensor) :]
        else:
            found = state[name][: len(tensor)] if key != "question" else state[name][0]
        ours[key] = found
    model.load_state_dict(ours, strict=True)
    return model


def export(model: PAST) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    found: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        name = _name(key)
        if ".key_value." in name:
            name = name.replace("key_value", "attn.c_attn")
            tensor = torch.cat([found[name], tensor])  # the query came before
        found[name] = tensor[None].clone() if key == "question" else tensor.clone()
    return found


def replay(model: PAST, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' logits and loss of ``tokens`` where some are ``visible`` and some ``predicted``, and a gradient."""
    logits = model.predict(inputs["tokens"], inputs["visible"].bool())
    loss = loss_of(logits, inputs["tokens"], inputs["predicted"].bool())
    (gradient,) = torch.autograd.grad(loss, [model.embedding.weight], retain_graph=True)
    return {"logits": logits, "loss": loss, "embedding_gradient": gradient}


def _name(key: str) -> str:
    for pattern, name in NAMES:
        key = re.sub(pattern, name, key)
    return key
