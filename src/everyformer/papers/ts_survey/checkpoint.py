"""State dicts of thuml/Time-Series-Library's Autoformer, PatchTST and DLinear, to ours and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everyformer.papers.ts_survey.autoformer import AutoCorrelation, Autoformer
from everyformer.papers.ts_survey.decomposition import DLinear
from everyformer.papers.ts_survey.model import PatchTST
from everyformer.parts.checkpoints import check

# Calendar features by sampling frequency, as the library counts them.
MARKS = {"h": 4, "t": 5, "s": 6, "m": 1, "a": 1, "w": 2, "d": 3, "b": 3}


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Autoformer | PatchTST | DLinear:
    """The library's model with the library's weights.

    Args:
        state: the state dict, with or without the ``module.`` prefix of data parallel.
        config: the library's option names: ``seq_len`` and ``pred_len``; ``d_model``, ``n_heads`` (PatchTST), ``d_ff``,
            ``e_layers``; for Autoformer also ``label_len``, ``enc_in``, ``d_layers`` and ``freq``. ``model`` may be left
            out: the keys tell which it is. ``moving_avg``, ``factor``, ``dropout`` and ``activation`` default as theirs.

    Raises:
        ValueError: a missing, unexpected or misshapen key (named), or an option that is missing or not accepted.
    """
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    model = _built(state, config)
    ours = model.state_dict()
    names = dict(_names(model))
    parts = {name: part for key, theirs in names.items() for name, part in _cut(ours[key], theirs)}
    check(state, {name: _shape(name, part) for name, part in parts.items()})
    converted = {}
    for key, theirs in names.items():
        found = [state[name].reshape(parts[name].shape) for name in theirs]
        converted[key] = found[0] if len(found) == 1 else torch.cat(found)
    model.load_state_dict(converted, strict=True)
    return model


def export(model: Autoformer | PatchTST | DLinear) -> dict[str, Tensor]:
    """The weights under the library's names; buffers of position codes, which hold no weights, are left out.

    Raises:
        TypeError: another kind of model, or an Autoformer without auto-correlation or decomposition.
    """
    ours = model.state_dict()
    return {
        name: part.reshape(_shape(name, part)).contiguous()
        for key, names in _names(model)
        for name, part in _cut(ours[key], names)
    }


def replay(
    model: Autoformer | PatchTST | DLinear, inputs: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The library's ``forecast`` from its inputs ``x_enc``, ``x_mark_enc`` and ``x_mark_dec`` (``x_dec`` is not used)."""
    future = inputs["x_mark_dec"][:, -model.horizon :]
    return {"forecast": model(inputs["x_enc"], inputs["x_mark_enc"], future)}


def _built(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Autoformer | PatchTST | DLinear:
    signs: dict[str, str | tuple[str, ...]] = {"DLinear": "Linear_", "PatchTST": ("patch_embedding.", "head.")}
    told = next((kind for kind, sign in signs.items() if any(key.startswith(sign) for key in state)), "Autoformer")
    name = config.get("model", told)
    needed = {
        "DLinear": ("seq_len", "pred_len"),
        "PatchTST": ("seq_len", "pred_len", "d_model", "n_heads", "d_ff", "e_layers"),
        "Autoformer": ("seq_len", "label_len", "pred_len", "enc_in", "d_model", "d_ff", "e_layers", "d_layers"),
    }
    if name not in needed:
        raise ValueError(f"config['model'] must be one of {', '.join(sorted(needed))}, got {name!r}")
    missing = [option for option in needed[name] if option not in config]
    if missing:
        raise ValueError(f"config must give {', '.join(missing)} for {name}")
    if not config.get("task_name", "long_term_forecast").endswith("_forecast"):
        raise ValueError(f"config['task_name'] must be a forecast, got {config['task_name']!r}")
    lookback, horizon, kernel = config["seq_len"], config["pred_len"], config.get("moving_avg", 25)
    if name == "DLinear":
        return DLinear(lookback, horizon, kernel)
    sizes: dict[str, Any] = {"dim": config["d_model"], "ff": config["d_ff"], "layers": config["e_layers"]}
    sizes["dropout"] = config.get("dropout", 0.1)
    sizes["activation"] = "relu" if config.get("activation", "gelu") == "relu" else "gelu"
    if name == "PatchTST":
        return PatchTST(lookback, horizon, heads=config["n_heads"], **sizes)
    widths = {config[key] for key in ("enc_in", "dec_in", "c_out") if key in config}
    if len(widths) > 1:
        raise ValueError(f"config must give the same enc_in, dec_in and c_out, got {sorted(widths)}")
    frequency = config.get("freq", "h")
    if config.get("embed", "timeF") != "timeF" or frequency not in MARKS:
        raise ValueError(f"config must have embed='timeF' and freq of {sorted(MARKS)}, got freq={frequency!r}")
    return Autoformer(
        lookback, horizon, config["enc_in"], label=config["label_len"], decoder_layers=config["d_layers"],
        marks=MARKS[frequency], kernel=kernel, factor=config.get("factor", 1), **sizes,
    )  # fmt: skip


def _cut(ours: Tensor, names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """The pieces of a weight of ours that the library has apart; a number has no axis to cut."""
    return zip(names, ours.chunk(len(names)) if len(names) > 1 else (ours,), strict=True)


def _shape(theirs: str, ours: Tensor) -> tuple[int, ...]:
    """The library writes linear maps of the feed-forward part as convolutions of width 1."""
    return (*ours.shape, 1) if re.search(r"\.conv[12]\.weight$", theirs) else tuple(ours.shape)


def _names(model: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our weights and kept buffers, and the library's that it holds, one after another along the first axis."""

    def linear(ours: str, *theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs)

    if isinstance(model, DLinear):
        yield from linear("seasonal", "Linear_Seasonal")
        yield from linear("trend", "Linear_Trend")
    elif isinstance(model, PatchTST):
        yield "embed.weight", ("patch_embedding.value_embedding.weight",)
        for i in range(len(model.layers)):
            ours, theirs = f"layers.{i}", f"encoder.attn_layers.{i}"
            projections = (f"{theirs}.attention.{name}_projection" for name in ("query", "key", "value"))
            yield from linear(f"{ours}.qkv", *projections)
            yield from linear(f"{ours}.out", f"{theirs}.attention.out_projection")
            for mine, name in (("up", "conv1"), ("down", "conv2"), ("norm1", "norm1"), ("norm2", "norm2")):
                yield from linear(f"{ours}.{mine}", f"{theirs}.{name}")
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            yield f"norm.{kind}", (f"encoder.norm.1.{kind}",)
        yield from linear("head", "head.linear")
    elif isinstance(model, Autoformer):
        if model.decomposition is None or not isinstance(model.encoder[0].mixer, AutoCorrelation):
            raise TypeError("model must be an Autoformer with decomposition and auto-correlation")
        yield from _autoformer(model, linear)
    else:
        raise TypeError(f"model must be an Autoformer, a PatchTST or a DLinear, got {type(model).__name__}")


def _autoformer(
    model: Autoformer, linear: Callable[..., Iterator[tuple[str, tuple[str, ...]]]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for mine, name in (("embed", "enc_embedding"), ("embed_decoder", "dec_embedding")):
        yield f"{mine}.value.weight", (f"{name}.value_embedding.tokenConv.weight",)
        if model.marks:
            yield f"{mine}.calendar.weight", (f"{name}.temporal_embedding.embed.weight",)
    stacks = (("encoder", "encoder.attn_layers", model.encoder), ("decoder", "decoder.layers", model.decoder))
    for stack, prefix, layers in stacks:
        mixers = (
            {"mixer": "attention"} if stack == "encoder" else {"mixer": "self_attention", "cross": "cross_attention"}
        )
        for i in range(len(layers)):
            ours, theirs = f"{stack}.{i}", f"{prefix}.{i}"
            for mixer, attention in mixers.items():
                for part in ("query", "key", "value", "out"):
                    yield from linear(f"{ours}.{mixer}.{part}", f"{theirs}.{attention}.{part}_projection")
            yield f"{ours}.up.weight", (f"{theirs}.conv1.weight",)
            yield f"{ours}.down.weight", (f"{theirs}.conv2.weight",)
    for i in range(len(model.trends)):
        yield f"trends.{i}.weight", (f"decoder.layers.{i}.projection.weight",)
    yield from linear("encoder_norm", "encoder.norm.layernorm")
    yield from linear("decoder_norm", "decoder.norm.layernorm")
    yield from linear("head", "decoder.projection")
