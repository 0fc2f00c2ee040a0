"""Pruning: single weights by magnitude, N of M, whole heads, whole blocks.

Surveyed in arXiv 2307.07982, section 4. Everything acts in place and returns the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import prune

from everyformer.parts.compress.anatomy import (
    Heads,
    attentions,
    blocks,
    check_plain,
    check_share,
    linears,
    norm_widths,
    prepare,
)

Scope = Literal["layer", "global"]
SCOPES = ("layer", "global")


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise ValueError(f"scope must be layer or global, got {scope!r}")


def magnitude(
    model: nn.Module,
    sparsity: float = 0.5,
    *,
    scope: Scope = "global",
    names: Iterable[str] | None = None,
    permanent: bool = True,
) -> nn.Module:
    """Set the smallest weights of linear layers to zero (Han et al., arXiv 1506.02626).

    Args:
        sparsity: share of the weights.
        scope: the smallest of all layers together, or of each.
        names: the layers; those of the blocks by default.
        permanent: otherwise torch's masks stay, so that training keeps the zeros; end with :func:`make_permanent`.

    Raises:
        ValueError: a share outside [0, 1), another scope, no layers, or weights in fewer bits.
    """
    check_share("sparsity", sparsity)
    _check_scope(scope)
    treated = linears(prepare(model), names)
    check_plain(treated)
    layers = [(layer, "weight") for layer in treated.values()]
    if scope == "global":
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=sparsity)
    else:
        for layer, name in layers:
            prune.l1_unstructured(layer, name, amount=sparsity)
    return make_permanent(model) if permanent else model


def n_of_m(
    model: nn.Module, n: int = 2, m: int = 4, *, names: Iterable[str] | None = None, permanent: bool = True
) -> nn.Module:
    """Keep the ``n`` largest of every ``m`` weights that follow each other along a layer's inputs (arXiv 2104.08378).

    Raises:
        ValueError: not 0 < n < m, inputs that ``m`` does not divide, or weights in fewer bits.
    """
    if not 0 < n < m:
        raise ValueError(f"n must be above 0 and below m, got n={n} and m={m}")
    layers = linears(prepare(model), names)
    check_plain(layers)
    for name, layer in layers.items():
        if layer.in_features % m:
            raise ValueError(f"inputs of a layer must be a multiple of m={m}, got {layer.in_features} in {name!r}")
    for layer in layers.values():
        sizes = layer.weight.detach().abs().unflatten(-1, (-1, m))
        mask = torch.zeros_like(sizes).scatter(-1, sizes.topk(n).indices, 1.0).flatten(-2)
        prune.custom_from_mask(layer, "weight", mask)
    return make_permanent(model) if permanent else model


def make_permanent(model: nn.Module) -> nn.Module:
    """Write the zeros of torch's masks into the weights and remove the masks."""
    for module in model.modules():
        if hasattr(module, "weight_mask"):
            prune.remove(module, "weight")
    return model


def semi_structured(model: nn.Module) -> nn.Module:
    """Hold 2:4 weights in the form that sparse tensor cores multiply, by torchao; zero them by :func:`n_of_m` before.

    Raises:
        ValueError: a device without them (CUDA, compute capability 8.0 or above), or weights that are not 2:4 or have
            fewer bits.
    """
    layers = linears(prepare(model))
    check_plain(layers)
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(f"model must be on a CUDA device of compute capability 8.0 or above, got {device}")
    for name, layer in layers.items():
        if int((layer.weight.detach().unflatten(-1, (-1, 4)) != 0).sum(-1).max()) > 2:
            raise ValueError(f"weights must be 2 of 4 before, got more than 2 in {name!r}; use n_of_m")
    from torchao.sparsity import semi_sparse_weight, sparsify_

    chosen = set(map(id, layers.values()))
    sparsify_(model, semi_sparse_weight(), filter_fn=lambda module, name: id(module) in chosen)
    return model


def sparsity(model: nn.Module) -> float:
    """Share of zeros among the weights of the linear layers."""
    weights = [layer.weight.detach() for layer in linears(model).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


Importance = Mapping[str, Float[Tensor, " heads"]]


def head_importance(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> dict[str, Float[Tensor, " groups"]]:
    """How much the loss feels each head: mean |output . gradient| (Michel et al., arXiv 1905.10650, eq. 3 and 4).

    A group is a head, or a head of keys with all that read it. Each layer's values have unit norm.

    Raises:
        ValueError: no batches, or no attention.
    """
    found = attentions(model)
    totals = {name: torch.zeros(heads.groups, device=heads.output.weight.device) for name, heads in found.items()}

    def note(heads: Heads) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mixed = inputs[0]

            def seen(gradient: Tensor) -> None:
                products = (mixed.detach() * gradient).unflatten(-1, (heads.groups, -1)).sum(-1)
                totals[heads.name] += products.flatten(1, -2).sum(1).abs().mean(0)

            mixed.register_hook(seen)  # type: ignore[no-untyped-call]

        return hook

    handles = [heads.output.register_forward_pre_hook(note(heads)) for heads in found.values()]
    count = 0
    try:
        for batch in batches:
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            count += 1
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    if not count:
        raise ValueError("batches must hold at least one batch")
    return {name: total / total.norm().clamp_min(1e-12) for name, total in totals.items()}


def prune_heads(
    model: nn.Module, ratio: float = 0.25, *, importance: Importance | None = None, scope: Scope = "layer"
) -> nn.Module:
    """Take whole attention heads out, so that smaller matrices result; at least one stays in every layer.

    Args:
        ratio: share of the heads, rounded to whole ones.
        importance: by :func:`head_importance`; else the norm of a head's values times that of what reads them.
        scope: equally many from every layer, or the least important of all.

    Raises:
        ValueError: a share outside [0, 1), no attention, an importance of other heads, heads that layers share, or weights
            in fewer bits or factors.
    """
    check_share("ratio", ratio)
    _check_scope(scope)
    found = attentions(prepare(model))
    for heads in found.values():
        check_plain(heads.layers)
    weights = [id(heads.output.weight) for heads in found.values()]
    if len(set(weights)) < len(weights):
        raise ValueError("model must not share its attention between layers; prune heads before sharing")
    scores = {name: _given(name, heads, importance) for name, heads in found.items()}
    if scope == "layer":
        gone = {name: min(round(ratio * len(values)), len(values) - 1) for name, values in scores.items()}
    else:
        # The most important head of a layer cannot go: it stands above all others.
        flat = torch.cat([values.masked_fill(values == values.max(), torch.inf) for values in scores.values()])
        removable = int(flat.isfinite().sum())
        count = min(round(ratio * len(flat)), removable)
        bound = flat.sort().values[count - 1] if count else -torch.inf
        gone = {
            name: int((values.masked_fill(values == values.max(), torch.inf) <= bound).sum())
            for name, values in scores.items()
        }
    for name, values in scores.items():
        found[name].keep(sorted(values.argsort(descending=True)[: len(values) - gone[name]].tolist()))
    return model


def _given(name: str, heads: Heads, importance: Importance | None) -> Tensor:
    if importance is not None:
        if name not in importance or len(importance[name]) != heads.groups:
            raise ValueError(
                f"importance must have {heads.groups} values for {name!r}, got those of {list(importance)}"
            )
        return importance[name].detach().cpu().float()
    rows = getattr(heads.module, heads.projections[-1]).weight.detach()[-heads.groups * heads.head_dim :]
    written = rows.reshape(heads.groups, -1).norm(dim=1)
    read = heads.output.weight.detach().unflatten(1, (heads.groups, -1)).norm(dim=(0, 2))
    scores = (written * read).float().cpu()
    return scores / scores.norm().clamp_min(1e-12)


@torch.no_grad()
def block_importance(model: nn.Module, batches: Iterable[Any]) -> Float[Tensor, " blocks"]:
    """How much each block turns its input: 1 - cosine of what goes in and comes out (arXiv 2403.03853, eq. 1).

    A batch is what the model is called with: a tensor, or a mapping of keyword arguments.
    """
    _, members = blocks(model)
    totals = torch.zeros(len(members))
    seen = 0

    def note(index: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            totals[index] += 1 - F.cosine_similarity(inputs[0].float(), after.float(), dim=-1).mean().cpu()

        return hook

    handles = [block.register_forward_hook(note(index)) for index, block in enumerate(members)]
    try:
        for batch in batches:
            model(**batch) if isinstance(batch, Mapping) else model(batch)
            seen += 1
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError("batches must hold at least one batch")
    return totals / seen


def drop_blocks(
    model: nn.Module, ratio: float = 0.25, *, importance: Float[Tensor, " blocks"] | None = None
) -> nn.Module:
    """Take whole blocks out; at least one stays.

    Args:
        ratio: share of the blocks, rounded to whole ones.
        importance: by :func:`block_importance`; else blocks at equal distances go (LayerDrop, arXiv 1909.11556).

    Raises:
        ValueError: a share outside [0, 1), a model without a list of blocks or with blocks that need each other (of
            several widths, or ``linked``), or an importance of other blocks.
    """
    check_share("ratio", ratio)
    name, members = blocks(model)
    if any(getattr(block, "linked", False) for block in members):
        raise ValueError(f"blocks must not take what others hand on to be left out, got {type(members[0]).__name__}")
    widths = {max(norm_widths(block), default=0) for block in members}
    if len(widths) > 1:
        raise ValueError(f"blocks must have one width to be left out, got {', '.join(map(str, sorted(widths)))}")
    count = len(members)
    kept = max(1, count - round(ratio * count))
    if importance is None:
        chosen = sorted({int(place) for place in torch.linspace(0, count - 1, kept).round().tolist()})
    elif len(importance) != count:
        raise ValueError(f"importance must have {count} values, got {len(importance)}")
    else:
        chosen = sorted(importance.argsort(descending=True)[:kept].tolist())
    shorter = (
        type(members)(*(members[i] for i in chosen))
        if isinstance(members, nn.Sequential)
        else nn.ModuleList(members[i] for i in chosen)
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, shorter)
    _renumber(model, name, chosen, count)
    return model


# What transformers' configurations may hold for each layer.
_PER_LAYER = (
    "layer_types", "mlp_layer_types", "indexer_types", "layers_block_type", "no_rope_layers", "attention_layers",
    "intermediate_size", "activation_sparsity_pattern",
)  # fmt: skip


def _renumber(model: nn.Module, name: str, chosen: list[int], before: int) -> None:
    """The numbers by which transformers' layers find their place in a cache, and what configurations say of layers.

    Masks and rotary positions of transformers follow ``config.layer_types``, not the layer.
    """
    members: Any = model.get_submodule(name)
    for number, block in enumerate(members):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    parts = name.split(".")
    owners = [model.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    for config in {id(owner.config): owner.config for owner in owners if hasattr(owner, "config")}.values():
        for attribute in ("num_hidden_layers", "n_layer"):
            if getattr(config, attribute, None) == before:
                setattr(config, attribute, len(chosen))
                break
        for attribute in _PER_LAYER:
            values = getattr(config, attribute, None)
            if isinstance(values, list | tuple) and len(values) == before:
                setattr(config, attribute, [values[place] for place in chosen])
