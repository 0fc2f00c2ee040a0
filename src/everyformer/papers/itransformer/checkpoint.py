"""State dicts of thuml/iTransformer, thuml/Time-Series-Library and neuralforecast, to ours and back.

What is read: iTransformer (and iFlashformer, the same maths), iFlowformer, and the repository's Transformer that is not
inverted (Flashformer, Flowformer). Time-Series-Library calls the last layer ``projection``, the others ``projector``;
neuralforecast's keys are the authors'. A ``module.`` prefix from data parallel is taken off. iInformer is not read: the
authors' code reads its heads as tokens there, and weights trained so fit no attention as published.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from everyformer.papers.itransformer.model import ITransformer
from everyformer.parts.series_layers import positions
from everyformer.parts.series_vanilla import VanillaTransformer

INVERTED = {"iTransformer": "full", "iFlashformer": "full", "iFlowformer": "flow"}
VANILLA = {"Transformer": "full", "Flashformer": "full", "Flowformer": "flow"}
# Calendar features by sampling frequency, as the authors count them, and the data sets they leave them out for.
MARKS = {"h": 4, "t": 5, "min": 5, "s": 6, "m": 1, "a": 1, "w": 2, "d": 3, "b": 3}
WITHOUT_MARKS = {"PEMS", "Solar", "m4"}

Layout = Literal["authors", "library"]


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> ITransformer | VanillaTransformer:
    """The authors' model with the authors' weights.

    Args:
        state: the state dict.
        config: the authors' option names. ``n_heads`` is needed; ``model`` names the attention (default iTransformer);
            ``freq`` (and ``data``) tell the number of calendar features, none without it; ``use_norm``, ``dropout`` and
            ``activation`` default as theirs do. Sizes may be left out where the state dict tells them: ``seq_len``,
            ``pred_len``, ``d_model``, ``d_ff``, ``e_layers``. The non-inverted model needs ``seq_len``, ``label_len``
            and ``pred_len``.

    Raises:
        ValueError: a missing, unexpected or misshapen key (named), or an option that is missing or not accepted.
    """
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if "n_heads" not in config:
        raise ValueError("config must give n_heads: the number of heads cannot be told from the weights")
    if config.get("embed", "timeF") != "timeF":
        raise ValueError(f"config['embed'] must be 'timeF', got {config['embed']!r}")
    vanilla = config["model"] in VANILLA if "model" in config else any(key.startswith("decoder.") for key in state)
    layout: Layout = "library" if any(key.startswith("projection.") for key in state) else "authors"
    model = _vanilla(state, config) if vanilla else _inverted(state, config, layout)
    _fill(model, state, layout)
    model.checkpoint_layout = layout  # type: ignore[assignment]
    return model


def export(model: ITransformer | VanillaTransformer, layout: Layout | None = None) -> dict[str, Tensor]:
    """The weights under the authors' names.

    ``layout="library"`` uses the names of Time-Series-Library; by default a model goes back to the layout it was loaded
    from. The sinusoidal ``position_embedding.pe`` buffers of the non-inverted model hold no weights and are left out.

    Raises:
        TypeError: another kind of model.
        ValueError: a model with ``future`` covariates, which the authors' model has no place for.
    """
    ours = model.state_dict()
    state: dict[str, Tensor] = {}
    for key, names in _names(model, layout or cast(Layout, getattr(model, "checkpoint_layout", "authors"))):
        for name, part in zip(names, ours[key].chunk(len(names)), strict=True):
            state[name] = (part.unsqueeze(-1) if _is_conv(name) else part).contiguous()
    return state


def replay(
    model: ITransformer | VanillaTransformer, inputs: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The authors' outputs from the authors' inputs: ``forecast``, and ``attention_<layer>`` with ``output_attention``.

    ``inputs`` holds ``x_enc``, with calendar features ``x_mark_enc``, and for the non-inverted model ``x_dec`` and
    ``x_mark_dec``.
    """
    marks = inputs.get("x_mark_enc")
    if isinstance(model, VanillaTransformer):
        memory = model.encoder(model.embed(inputs["x_enc"], marks))
        return {"forecast": model.decode(inputs["x_dec"], inputs.get("x_mark_dec"), memory)}
    if not config.get("output_attention"):
        return {"forecast": model(inputs["x_enc"], marks)}
    forecast, maps = model(inputs["x_enc"], marks, return_attention=True)
    return {"forecast": forecast, **{f"attention_{layer}": weights for layer, weights in enumerate(maps)}}


def _inverted(state: Mapping[str, Tensor], config: Mapping[str, Any], layout: Layout) -> ITransformer:
    name = config.get("model", "iTransformer")
    if name not in INVERTED:
        raise ValueError(f"config['model'] must be one of {sorted(INVERTED | VANILLA)}, got {name!r}")
    task = config.get("task_name", "long_term_forecast")
    if not task.endswith("_forecast"):
        raise ValueError(f"config['task_name'] must be long_term_forecast or short_term_forecast, got {task!r}")
    embedding, head = "enc_embedding.value_embedding.weight", f"{_head(layout)}.weight"
    # Only thuml/iTransformer's iTransformer can switch the normalisation off.
    fixed = layout == "library" or name != "iTransformer"
    return ITransformer(
        lookback=_size(state, config, "seq_len", embedding, 1),
        horizon=_size(state, config, "pred_len", head, 0),
        marks=_marks(config),
        attention=INVERTED[name],
        normalise=True if fixed else bool(config.get("use_norm", True)),
        **_shared(state, config, embedding),
    )


def _vanilla(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> VanillaTransformer:
    missing = [name for name in ("seq_len", "label_len", "pred_len") if name not in config]
    if missing:
        raise ValueError(f"config must give {', '.join(missing)} for the non-inverted model")
    name = config.get("model", "Transformer")
    widths = {config[key] for key in ("enc_in", "dec_in", "c_out") if key in config}
    if len(widths) > 1:
        raise ValueError(f"config must give the same enc_in, dec_in and c_out, got {sorted(widths)}")
    embedding = "enc_embedding.value_embedding.tokenConv.weight"
    calendar = state.get("enc_embedding.temporal_embedding.embed.weight")
    return VanillaTransformer(
        lookback=config["seq_len"],
        horizon=config["pred_len"],
        label=config["label_len"],
        variates=_size(state, config, "enc_in", embedding, 1),
        decoder_layers=config.get("d_layers", _count(state, r"decoder\.layers\.(\d+)\.")),
        marks=_marks(config) if calendar is None else calendar.shape[-1],
        attention=VANILLA[name],
        **_shared(state, config, embedding),
    )


def _shared(state: Mapping[str, Tensor], config: Mapping[str, Any], embedding: str) -> dict[str, Any]:
    return {
        "dim": _size(state, config, "d_model", embedding, 0),
        "heads": config["n_heads"],
        "layers": config.get("e_layers", _count(state, r"encoder\.attn_layers\.(\d+)\.")),
        "ff": _size(state, config, "d_ff", "encoder.attn_layers.0.conv1.weight", 0),
        "dropout": config.get("dropout", 0.1),
        "activation": "relu" if config.get("activation", "gelu") == "relu" else "gelu",
    }


def _size(state: Mapping[str, Tensor], config: Mapping[str, Any], option: str, key: str, axis: int) -> int:
    """A size from the configuration, else from the shape of a weight."""
    if option in config:
        return int(config[option])
    if key not in state or state[key].ndim <= axis:
        raise ValueError(f"state lacks {key} (or has it in another shape), and config does not give {option}")
    return state[key].shape[axis]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match.group(1) for key in state if (match := re.match(pattern, key))})


def _marks(config: Mapping[str, Any]) -> int:
    if "freq" not in config or config.get("data") in WITHOUT_MARKS:
        return 0
    unit = str(config["freq"]).lower().lstrip("0123456789")
    if unit not in MARKS:
        raise ValueError(f"config['freq'] must end in one of {sorted(MARKS)}, got {config['freq']!r}")
    return MARKS[unit]


def _head(layout: Layout) -> str:
    if layout not in ("authors", "library"):
        raise ValueError(f"layout must be 'authors' or 'library', got {layout!r}")
    return "projection" if layout == "library" else "projector"


def _is_conv(name: str) -> bool:
    return name.endswith((".conv1.weight", ".conv2.weight"))


def _names(model: nn.Module, layout: Layout) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our parameters and the authors' ones that it holds, one after another along the first axis."""

    def both(ours: str, *theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs)

    def attention(ours: dict[str, str], theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for key, parts in ours.items():
            yield from both(key, *(f"{theirs}.{part}_projection" for part in parts.split()))

    def rest(ours: str, theirs: str, norms: int) -> Iterator[tuple[str, tuple[str, ...]]]:
        pairs = {"up": "conv1", "down": "conv2", **{f"norm{i}": f"norm{i}" for i in range(1, norms + 1)}}
        for key, name in pairs.items():
            yield from both(f"{ours}.{key}", f"{theirs}.{name}")

    if not isinstance(model, ITransformer | VanillaTransformer):
        raise TypeError(f"model must be an ITransformer or a VanillaTransformer, got {type(model).__name__}")
    for i in range(len(model.encoder.layers)):
        ours, theirs = f"encoder.layers.{i}", f"encoder.attn_layers.{i}"
        fused = {f"{ours}.qkv": "query key value", f"{ours}.out": "out"}
        yield from attention(fused, f"{theirs}.attention")
        yield from rest(ours, theirs, 2)
    yield from both("encoder.norm", "encoder.norm")
    if isinstance(model, ITransformer):
        if model.future:
            raise ValueError(f"model must have no future covariates to be exported, got future={model.future}")
        yield from both("embed", "enc_embedding.value_embedding")
        yield from both("head", _head(layout))
        return
    for ours, theirs in (("embed", "enc_embedding"), ("embed_decoder", "dec_embedding")):
        yield f"{ours}.value.weight", (f"{theirs}.value_embedding.tokenConv.weight",)
        if model.marks:
            yield f"{ours}.calendar.weight", (f"{theirs}.temporal_embedding.embed.weight",)
    for i in range(len(model.decoder)):
        ours, theirs = f"decoder.{i}", f"decoder.layers.{i}"
        yield from attention({f"{ours}.qkv": "query key value", f"{ours}.out": "out"}, f"{theirs}.self_attention")
        cross = {f"{ours}.cross_query": "query", f"{ours}.cross_kv": "key value", f"{ours}.cross_out": "out"}
        yield from attention(cross, f"{theirs}.cross_attention")
        yield from rest(ours, theirs, 3)
    yield from both("norm", "decoder.norm")
    yield from both("head", "decoder.projection")


def _fill(model: ITransformer | VanillaTransformer, state: Mapping[str, Tensor], layout: Layout) -> None:
    """Copy the authors' weights into ours; ``ValueError`` names a key that is missing, unexpected or misshapen."""
    ours = model.state_dict()
    converted: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, names in _names(model, layout):
        parts = []
        for name, part in zip(names, ours[key].chunk(len(names)), strict=True):
            shape = (*part.shape, 1) if _is_conv(name) else tuple(part.shape)
            if name not in state:
                raise ValueError(f"state lacks the key {name}")
            if tuple(state[name].shape) != shape:
                raise ValueError(f"state key {name} must have shape {shape}, got {tuple(state[name].shape)}")
            parts.append(state[name].reshape(part.shape))
        converted[key] = torch.cat(parts)
        used.update(names)
    for name in sorted(set(state) - used):
        if not (isinstance(model, VanillaTransformer) and _is_position_code(name, state[name])):
            raise ValueError(f"state has the unexpected key {name}")
    model.load_state_dict(converted, strict=True)


def _is_position_code(name: str, tensor: Tensor) -> bool:
    """Whether this is the authors' sinusoidal buffer, which is derived here."""
    if not re.fullmatch(r"(enc|dec)_embedding\.position_embedding\.pe", name) or tensor.ndim != 3:
        return False
    return torch.allclose(tensor[0].float(), positions(*tensor.shape[1:]), atol=1e-3)
