"""Token merging for vision transformers (ToMe, arXiv 2210.09461): alike tokens become one between attention and MLP."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.parts.compress.anatomy import Heads, attentions, blocks


class Matches(NamedTuple):
    """Which tokens go, into which they go, and which stay, in order; each (batch, tokens)."""

    source: Int[Tensor, "batch merged"]
    target: Int[Tensor, "batch merged"]
    kept: Int[Tensor, "batch kept"]


Match = Callable[[Float[Tensor, "batch tokens dim"], int, int], Matches]


def bipartite(keys: Float[Tensor, "batch tokens dim"], count: int, protected: int) -> Matches:
    """Bipartite soft matching (section 3 of the paper): the ``count`` likest pairs of an even and an odd place.

    Every even token has one partner at most, the odd one whose key has the highest cosine. The first ``protected``
    tokens neither go nor take others in.
    """
    unit = F.normalize(keys.float(), dim=-1)
    scores = unit[:, ::2] @ unit[:, 1::2].mT
    scores[:, : (protected + 1) // 2] = -torch.inf
    scores[:, :, : protected // 2] = -torch.inf
    best, partner = scores.max(-1)
    chosen = best.topk(count).indices
    return matched(2 * chosen, 2 * partner.gather(1, chosen) + 1, keys.shape[1])


def matched(source: Int[Tensor, "batch merged"], target: Int[Tensor, "batch merged"], tokens: int) -> Matches:
    """The matches that pairs make: what stays keeps its order."""
    gone = torch.zeros(len(source), tokens, dtype=torch.int8, device=source.device).scatter(1, source, 1)
    return Matches(source, target, gone.argsort(dim=1, stable=True)[:, : tokens - source.shape[1]])


def merge(
    x: Float[Tensor, "batch tokens dim"], sizes: Float[Tensor, "batch tokens 1"], matches: Matches
) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept 1"]]:
    """Means of the merged tokens, weighted by how many each stands for, and the new sizes."""
    whole = torch.cat([x * sizes, sizes], dim=-1)
    wide = whole.shape[-1]
    moved = whole.gather(1, matches.source[..., None].expand(-1, -1, wide))
    whole = whole.scatter_add(1, matches.target[..., None].expand(-1, -1, wide), moved)
    kept = whole.gather(1, matches.kept[..., None].expand(-1, -1, wide))
    return (kept[..., :-1] / kept[..., -1:]).to(x.dtype), kept[..., -1:]


class _Sizes:
    """How many of the first tokens each stands for, while one forward pass runs."""

    def __init__(self) -> None:
        self.value: Tensor | None = None


class _Plan(NamedTuple):
    heads: Heads
    sizes: _Sizes
    pairs: int
    protected: int
    first: bool
    match: Match


def merge_tokens(
    model: nn.Module, per_block: int = 8, *, protected: int | None = None, match: Match = bipartite
) -> nn.Module:
    """Let every block of a vision transformer merge ``per_block`` pairs of tokens, in place; returns the model.

    Attention is proportional (eq. 1 of the paper): a token counts as often as the tokens it stands for. No weight changes;
    no training is needed. Works on timm's ``VisionTransformer`` and transformers' ``ViT``; undone by :func:`unmerge`.

    Args:
        per_block: pairs in each block, at most half of the tokens that are there.
        protected: tokens at the front that stay alone; the model's class, distillation and register tokens by default.
        match: how pairs are chosen, ``match(keys, count, protected)``.

    Raises:
        ValueError: ``per_block`` or ``protected`` below 0, or blocks that are no pre-norm encoder of timm or transformers;
            in a forward pass, more ``protected`` tokens than there are.
    """
    if protected is None:
        protected = _prefix(model)
    for name, value in (("per_block", per_block), ("protected", protected)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    path, members = blocks(model)
    found = attentions(model)
    sizes = _Sizes()
    for number, block in enumerate(members):
        _check(block)
        attention = "attn" if hasattr(block, "attn") else "attention"
        heads = found.get(f"{path}.{number}.{attention}")
        if heads is None:
            raise ValueError(f"blocks must have attention with plain heads, got {type(block).__name__}")
        block.merging = _Plan(heads, sizes, per_block, protected, number == 0, match)  # type: ignore[assignment]
        block.forward = types.MethodType(_forward, block)
    return model


def _prefix(model: nn.Module) -> int:
    """Tokens before those of the picture: timm's models tell, those of transformers have a parameter for each kind."""
    told = getattr(model, "num_prefix_tokens", None)
    if told is not None:
        return int(told)
    kinds = ("cls_token", "distillation_token", "register_tokens")
    held = [tensor for name, tensor in model.named_parameters() if name.rpartition(".")[2] in kinds]
    return sum(tensor.shape[-2] for tensor in held) or 1


def unmerge(model: nn.Module) -> nn.Module:
    """Take :func:`merge_tokens` back, in place."""
    for module in model.modules():
        if "merging" in module.__dict__:
            del module.__dict__["merging"], module.__dict__["forward"]
    return model


_TIMM = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
_TRANSFORMERS = ("layernorm_before", "attention", "dropout", "layernorm_after", "mlp")


def _check(block: nn.Module) -> None:
    children = {name for name, _ in block.named_children()}
    if children not in (set(_TIMM), set(_TRANSFORMERS)):
        raise ValueError(
            f"blocks must be timm's Block or transformers' ViTLayer to merge tokens, got {type(block).__name__}"
        )


def _forward(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A pre-norm block whose tokens merge halfway."""
    if any(argument is not None for argument in args) or kwargs.get("attention_mask") is not None:
        raise ValueError("attention_mask must be None while tokens merge: they change their places")
    plan: _Plan = block.merging
    if plan.first:
        plan.sizes.value = None
    if plan.protected > x.shape[1]:
        raise ValueError(f"protected must be at most the {x.shape[1]} tokens, got {plan.protected}")
    timm = hasattr(block, "attn")
    normed = block.norm1(x) if timm else block.layernorm_before(x)
    mixed, keys = _attend(plan.heads, normed, plan.sizes.value)
    x = x + (block.drop_path1(block.ls1(mixed)) if timm else block.dropout(mixed))
    count = min(plan.pairs, (x.shape[1] - plan.protected) // 2)
    if count:
        sizes = plan.sizes.value
        if sizes is None:
            sizes = torch.ones_like(x[..., :1], dtype=torch.float32)
        x, plan.sizes.value = merge(x, sizes, plan.match(keys.mean(1), count, plan.protected))
    if timm:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[no-any-return]
    return x + block.dropout(block.mlp(block.layernorm_after(x)))  # type: ignore[no-any-return]


def _attend(heads: Heads, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of an attention module, proportional to the sizes; and its keys."""
    module: Any = heads.module
    query, key, value = heads.project(x)
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    bias = None if sizes is None else sizes.log().mT[:, None].to(query.dtype)
    dropout = 0.0
    if module.training:
        dropout = module.attn_drop.p if hasattr(module, "attn_drop") else module.attention_dropout
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    out = heads.output(mixed.transpose(1, 2).flatten(2))
    return (module.proj_drop(out) if hasattr(module, "proj_drop") else out), key
