"""Haiku parameters of the authors' code, to ours and back (google-research/self-organising-systems).

Their keys are ``<name>/multi_head_attention/query/w`` with tied layers (``deq``), and otherwise
``<name>/~trans_block/layer_<l>/query/w``; matrices act from the right, heads side by side in the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from everyformer.papers.icl_gd.construct import gradient_descent
from everyformer.papers.icl_gd.model import InContextTransformer, TokenMLP

# Switches of the authors' code that no published notebook turns on, with the value that means off.
OFF = {"use_non_lin_mix": False, "sum_norm": False, "output_mapping": False, "zero_embeddings": False, "flip": False,
       "vocab_size": 0}  # fmt: skip


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> InContextTransformer:
    """The authors' model with the authors' weights.

    Args:
        state: Haiku's parameters, ``module/name`` to tensor.
        config: the authors' constructor arguments; ``num_layers``, ``num_heads`` and ``key_size`` are needed.

    Raises:
        ValueError: a key that is missing, unexpected or misshapen (named), or an option that is not read.
    """
    name = config.get("name", "transformer")
    tied = bool(config.get("deq", True))
    prefix = f"{name}/multi_head_attention" if tied else f"{name}/~trans_block/layer_0"
    if f"{prefix}/query/w" not in state:
        raise ValueError(f"state lacks the key {prefix}/query/w")
    model = _build(config, tied, state[f"{prefix}/query/w"].shape[0])
    model.checkpoint_name = name  # type: ignore[assignment]
    places = {place.key: place for place in _places(model, name)}
    for key in places:
        if key not in state:
            raise ValueError(f"state lacks the key {key}")
    for key, tensor in state.items():
        if key not in places:
            raise ValueError(f"state has the unexpected key {key}")
        shape = tuple(places[key].read().shape)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"state key {key} must have shape {shape}, got {tuple(tensor.shape)}")
    with torch.no_grad():
        for key, place in places.items():
            place.write(state[key])
    return model


def export(model: InContextTransformer) -> dict[str, Tensor]:
    """The weights under the authors' keys, with the name of the checkpoint it was loaded from (``transformer``)."""
    name = str(getattr(model, "checkpoint_name", "transformer"))
    return {place.key: place.read().detach().clone() for place in _places(model, name)}


def replay(model: InContextTransformer, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' outputs: tokens, prediction, per layer readout and attention, and the readout's gradient.

    With ``w_init`` among the inputs the weights are the construction, and plain descent in float64 is beside it.
    """
    tokens = inputs["tokens"].detach().clone().requires_grad_()
    outputs: dict[str, Tensor] = {}
    h = tokens
    for layer, (h, weights) in enumerate(model.trace(tokens)):
        outputs[f"step_{layer}"] = h[:, :-1] if config.get("ana_copy") else -h[:, -1, -1]
        outputs[f"attention_{layer}"] = weights
    (grad,) = torch.autograd.grad(h[:, -1, -1].sum(), tokens, retain_graph=True)
    outputs |= {"tokens": h, "prediction": model(tokens)[:, 0], "grad_readout": grad}
    if "w_init" in inputs:
        rate = model.layer().out[0, -1, -1].item() * (tokens.shape[1] - 1)
        w0 = inputs["w_init"][0].double()
        found = gradient_descent(tokens.detach().double(), rate, model.layers, w0=w0)
        outputs["gd_prediction"] = found[..., 0].float()
    return outputs


def _build(config: Mapping[str, Any], tied: bool, dim: int) -> InContextTransformer:
    for option, off in OFF.items():
        if config.get(option, off) != off:
            raise ValueError(f"config[{option!r}] must be {off!r}: it is not read, got {config[option]!r}")
    if config.get("use_pe") and not config.get("concat_pe"):
        raise ValueError("config['concat_pe'] must be true with use_pe: added positions are not read")
    if config.get("use_layer_norm") and tied:
        raise ValueError("config['use_layer_norm'] must be false with deq: norms of tied layers are not read")
    for option in ("num_layers", "num_heads", "key_size"):
        if option not in config:
            raise ValueError(f"config must give {option}")
    embed = None
    if config.get("input_mlp"):
        width = config["embedding_size"]
        embed = TokenMLP(2, width, config.get("widening_factor", 4) * width)
    first: Literal["first", False] = "first" if config.get("first_layer_sm") else False
    return InContextTransformer(
        dim,
        config["num_layers"],
        tied=tied,
        heads=config["num_heads"],
        key_dim=config["num_heads"] * config["key_size"],
        softmax=True if config.get("use_softmax") else first,
        norm=bool(config.get("use_layer_norm")),
        mlp=0 if config.get("only_attention", True) else config.get("widening_factor", 4),
        bias=bool(config.get("use_bias_p")),
        dampening=config.get("dampening", 1.0),
        clip=config.get("clip") or None,
        y_only=bool(config.get("y_update")),
        positions=config["pe_size"] if config.get("use_pe") else 0,
        embed=embed,
        exclude_query=not config.get("include_query"),
    )


class _Place(NamedTuple):
    """Where an authors' tensor lives in ours."""

    key: str
    read: Callable[[], Tensor]
    write: Callable[[Tensor], Any]


def _places(model: InContextTransformer, name: str) -> Iterator[_Place]:
    for index in range(len(model.attention)):
        layer = model.layer(index)
        where = f"{name}/multi_head_attention" if model.tied else f"{name}/~trans_block/layer_{index}"
        for part in ("query", "key", "value"):
            ours = getattr(layer, part)  # (heads, dim, head_dim), and with biases one row more
            yield _heads(f"{where}/{part}/w", ours, slice(0, layer.dim))
            if layer.bias:
                yield _heads(f"{where}/{part}/b", ours, layer.dim)
        yield _stacked(f"{where}/linear/w", layer.out)
        if layer.out_bias is not None:
            yield _plain(f"{where}/linear/b", layer.out_bias)
    blocks = name if model.tied else f"{name}/~trans_block"
    for index, norm in enumerate(model.norms):
        yield from _norm(f"{blocks}/norm_{index}", norm)
    if model.mlp is not None:
        yield from _mlp(f"{blocks}/mlp", model.mlp)
        yield from _norm(f"{blocks}/layer_norm", model.mlp_norm)
    if isinstance(model.embed, TokenMLP):
        yield _plain(f"{name}/emb/w", model.embed.emb.weight.mT)
        yield from _mlp(f"{name}/input_mlp", model.embed.mlp)


def _heads(key: str, ours: Tensor, rows: slice | int) -> _Place:
    """Heads side by side in the columns on their side, one after another on ours."""

    def read() -> Tensor:
        return ours[:, rows].transpose(0, -2).flatten(-2) if isinstance(rows, slice) else ours[:, rows].flatten()

    def write(theirs: Tensor) -> None:
        parts = theirs.unflatten(-1, (ours.shape[0], -1))
        ours[:, rows] = parts.transpose(0, 1) if isinstance(rows, slice) else parts

    return _Place(key, read, write)


def _stacked(key: str, ours: Tensor) -> _Place:
    """Heads one after another in the rows."""
    return _Place(key, lambda: ours.flatten(0, 1), lambda theirs: ours.copy_(theirs.reshape(ours.shape)))


def _plain(key: str, ours: Tensor) -> _Place:
    return _Place(key, lambda: ours, lambda theirs: ours.copy_(theirs))


def _norm(where: str, norm: nn.Module) -> Iterator[_Place]:
    if isinstance(norm, nn.LayerNorm):
        yield _plain(f"{where}/scale", norm.weight)
        yield _plain(f"{where}/offset", norm.bias)


def _mlp(where: str, layers: nn.Module) -> Iterator[_Place]:
    for key, layer in (("linear", layers[0]), ("linear_1", layers[2])):  # type: ignore[index]
        yield _plain(f"{where}/{key}/w", layer.weight.mT)
        if layer.bias is not None:
            yield _plain(f"{where}/{key}/b", layer.bias)
