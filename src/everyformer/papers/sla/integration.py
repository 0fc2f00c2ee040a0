"""Sparse-linear attention in models that exist already: diffusers, transformers, timm, plain PyTorch, and our DiT.

:func:`replace_attention` goes through a model and gives every self-attention it knows its own
:class:`~everyformer.papers.sla.layer.SparseLinearAttention`, between the model's own projections, norms and rotary
embedding and its own output projection. The layer becomes a submodule called ``sla`` of the attention module (``attend``
in our DiT), so that its projection is trained, moved and saved with the model. :func:`restore_attention` takes it out.

Nothing here imports diffusers, transformers or timm: their modules are recognised by what they are.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from everyformer.papers.sla.layer import SparseLinearAttention
from everyformer.parts import dit


def replace_attention(
    model: nn.Module,
    *,
    critical: float = 0.05,
    negligible: float = 0.10,
    block: int = 64,
    feature_map: Literal["softmax", "elu", "relu"] = "softmax",
    linear_over: Literal["marginal", "all"] = "marginal",
    modules: Iterable[str] | None = None,
) -> list[str]:
    """Give the self-attentions of ``model`` sparse-linear attention in place; returns their names.

    Known are diffusers' Wan and CogVideoX transformers, every encoder of transformers that goes through its
    ``AttentionInterface``, ``nn.MultiheadAttention``, timm's ``Attention`` (and modules of the same make) and
    :class:`everyformer.parts.dit.DiT`. ``modules`` limits it to these names (as in ``model.named_modules()``).
    Settings are those of :class:`SparseLinearAttention`; its projection starts at zero, so that the model first computes
    block-sparse attention, and fine-tuning brings the linear branch in.

    Cross-attention and causal attention are left alone. In CogVideoX, text and video tokens form one sequence, text
    first, and all of it goes through the layer; where the text ends within a block, that block is text and video.
    Dropout of attention weights has no counterpart here and is not applied. Attention masks, padding and position
    biases raise ``ValueError`` when the model is called.

    Raises:
        ValueError: no attention of the model can be replaced (the message says why), a name in ``modules`` is not there
            or cannot be replaced, or the model has been treated before.
    """
    found, refused = _survey(model)
    if modules is not None:
        wanted = list(modules)
        known = dict(model.named_modules())
        for name in wanted:
            if name not in known:
                raise ValueError(f"modules names {name!r}, which the model does not have")
            if name not in found:
                reason = refused.get(name, f"{type(known[name]).__name__} is no self-attention known here")
                raise ValueError(f"modules names {name!r}, which cannot be replaced: {reason}")
        found = {name: found[name] for name in wanted}
    if not found:
        reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in list(refused.items())[:4])
        raise ValueError(
            f"{type(model).__name__} has no self-attention to replace" + (f" ({reasons})" if reasons else "")
        )

    # Build every layer first: settings that are refused must leave the model as it was.
    settings = {"critical": critical, "negligible": negligible, "block": block}
    layers = {
        name: SparseLinearAttention(head_dim, **settings, feature_map=feature_map, linear_over=linear_over)  # type: ignore[arg-type]
        for name, (_, _, head_dim) in found.items()
    }
    for name, (module, family, _) in found.items():
        like = next(p for p in module.parameters() if p.is_floating_point())
        family.attach(module, layers[name].to(device=like.device, dtype=like.dtype).train(module.training))
    return list(found)


def restore_attention(model: nn.Module) -> list[str]:
    """Take out what :func:`replace_attention` put in, trained projections included; returns the names of the modules.

    Raises ``ValueError`` if the model has no replaced attention.
    """
    names = []
    for name, module in model.named_modules():
        if _BEFORE in module.__dict__:
            family = next(family for family in _FAMILIES if family.owns(module))
            family.detach(module)
            names.append(name)
    if not names:
        raise ValueError(f"{type(model).__name__} has no attention that replace_attention replaced")
    return names


def register_transformers() -> None:
    """Make ``"sla"`` an attention implementation of transformers (``AttentionInterface`` and its mask counterpart).

    :func:`replace_attention` does this by itself; call it to build a model with ``attn_implementation="sla"`` before
    the attentions are replaced. Raises ``ImportError`` with the line to install if transformers is missing.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ImportError as error:
        raise ImportError('transformers is needed: pip install "everyformer[language]"') from error
    AttentionInterface.register("sla", transformers_attention)
    # The mask of sdpa is None when nothing is masked, which is the one case that is accepted.
    AttentionMaskInterface.register("sla", sdpa_mask)


def transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for ``"sla"``: (batch, heads, tokens, head_dim) in, (batch, tokens, heads, head_dim) out.

    Raises ``ValueError`` for causal attention, masks, position biases, soft caps, sliding windows and attention sinks,
    and for a module that :func:`replace_attention` has not given its layer.
    """
    name = type(module).__name__
    if getattr(module, "sla", None) is None:
        raise ValueError(f"{name} has no sparse-linear attention: call replace_attention(model) first")
    if is_causal or (is_causal is None and getattr(module, "is_causal", False)):
        raise ValueError(f"{name} is causal; sparse-linear attention is defined for attention in both directions only")
    _refuse_mask(name, attention_mask)
    for option in ("position_bias", "softcap", "sliding_window", "s_aux"):
        if options.get(option) is not None:
            raise ValueError(f"{name} passes {option}, which sparse-linear attention has no place for")
    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    if scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)  # the layer divides by sqrt(head_dim) itself
    return module.sla(query, key, value).transpose(1, 2), None  # type: ignore[operator]


class WanProcessor:
    """diffusers' attention processor for Wan's self-attention, with the layer that hangs at ``attn.sla``."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            raise ValueError("encoder_hidden_states was given to self-attention")
        _refuse_mask("Wan's self-attention", attention_mask)
        q, k, v = _projected(attn, hidden_states)
        # Wan normalises over all heads together, before they are split.
        q, k, v = (_split_heads(x, attn.heads) for x in (attn.norm_q(q), attn.norm_k(k), v))
        if rotary_emb is not None:
            cos, sin = (x.transpose(1, 2) for x in rotary_emb)
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        return _leave(attn, attn.sla(q, k, v).to(q.dtype))


class CogVideoXProcessor:
    """diffusers' attention processor for CogVideoX's joint attention of text and video, with the layer ``attn.sla``."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        _refuse_mask("CogVideoX's attention", attention_mask)
        text = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (_split_heads(x, attn.heads) for x in _projected(attn, joint))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        if image_rotary_emb is not None:
            # Text has no place in space and time: a rotation by nothing.
            cos, sin = image_rotary_emb
            cos, sin = F.pad(cos, (0, 0, text, 0), value=1.0), F.pad(sin, (0, 0, text, 0))
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        out = _leave(attn, attn.sla(q, k, v))
        return out[:, text:], out[:, :text]


def _refuse_mask(who: str, mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError(
            f"{who} was given an attention mask of shape {tuple(mask.shape)}; sparse-linear attention takes none. "
            "Batch sequences of equal length, without padding"
        )


def _projected(attn: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values by the model's own projections, fused into one or not."""
    if getattr(attn, "fused_projections", False):
        return attn.to_qkv(x).chunk(3, dim=-1)
    return attn.to_q(x), attn.to_k(x), attn.to_v(x)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b n (h d) -> b h n d", h=heads)


def _leave(attn: Any, x: Tensor) -> Tensor:
    """Heads together again and through the model's output projection and dropout."""
    return attn.to_out[1](attn.to_out[0](rearrange(x, "b h n d -> b n (h d)")))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs of features (arXiv 2104.09864, equation 34)."""
    turned = rearrange([-x[..., 1::2], x[..., 0::2]], "two b h n d -> b h n (d two)")
    return (x * cos + turned * sin).to(x.dtype)


def _multihead_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward``: self-attention through the layer (weights are ``None``), the rest as ever."""
    if key is not query or value is not key:
        return type(module).forward(
            module, query, key, value, key_padding_mask=key_padding_mask, need_weights=need_weights,
            attn_mask=attn_mask, average_attn_weights=average_attn_weights, is_causal=is_causal,
        )  # fmt: skip
    if is_causal:
        raise ValueError("is_causal=True: sparse-linear attention is defined for attention in both directions only")
    _refuse_mask("nn.MultiheadAttention", attn_mask if key_padding_mask is None else key_padding_mask)
    if query.is_nested or query.dim() != 3:
        raise ValueError(f"query must be a batch of sequences of equal length, three dimensions; got {query.dim()}")
    x = query if module.batch_first else query.transpose(0, 1)
    q, k, v = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    out = module.sla(*(_split_heads(y, module.num_heads) for y in (q, k, v)))
    out = module.out_proj(rearrange(out, "b h n d -> b n (h d)"))
    return (out if module.batch_first else out.transpose(0, 1)), None


def _qkv_forward(module: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """The forward of timm's ``Attention``, with the parts that a given version or relative of it has."""
    if is_causal:
        raise ValueError("is_causal=True: sparse-linear attention is defined for attention in both directions only")
    _refuse_mask(type(module).__name__, attn_mask)
    q, k, v = rearrange(module.qkv(x), "b n (three h d) -> three b h n d", three=3, h=module.num_heads)
    parts = dict(module.named_children())
    q, k = (parts[name](y) if name in parts else y for name, y in (("q_norm", q), ("k_norm", k)))
    out = rearrange(module.sla(q, k, v), "b h n d -> b n (h d)")
    out = parts["norm"](out) if "norm" in parts else out
    out = out * parts["gate"](x).sigmoid() if "gate" in parts else out
    out = module.proj(out)
    return parts["proj_drop"](out) if "proj_drop" in parts else out


_BEFORE = "_before_sla"
"""Attribute of a replaced module that keeps what stood there before, in a tuple (a bare module would be registered)."""


class _Family(NamedTuple):
    """One kind of attention module: ``owns`` recognises it, ``refuses`` says why one of them cannot be replaced."""

    owns: Callable[[nn.Module], bool]
    refuses: Callable[[Any], str | None]
    head_dim: Callable[[Any], int]
    attach: Callable[[Any, SparseLinearAttention], None]
    detach: Callable[[Any], None]


def _survey(model: nn.Module) -> tuple[dict[str, tuple[nn.Module, _Family, int]], dict[str, str]]:
    """The attentions that can be replaced, and the reasons for those that cannot."""
    found, refused = {}, {}
    for name, module in model.named_modules():
        family = next((family for family in _FAMILIES if family.owns(module)), None)
        if family is None:
            continue
        if _BEFORE in module.__dict__:
            refused[name] = "it has sparse-linear attention already; restore_attention(model) takes it out"
        elif reason := family.refuses(module):
            refused[name] = reason
        else:
            found[name] = (module, family, family.head_dim(module))
    return found, refused


def _is(module: object, package: str, *names: str) -> bool:
    """Whether a class of ``package`` with one of these names is among the module's classes; imports nothing."""
    return any(c.__name__ in names and c.__module__.partition(".")[0] == package for c in type(module).__mro__)


def _attach_processor(make: Callable[[], Any]) -> Callable[[Any, SparseLinearAttention], None]:
    def attach(module: Any, layer: SparseLinearAttention) -> None:
        setattr(module, _BEFORE, (module.processor,))
        module.sla = layer
        module.set_processor(make())

    return attach


def _detach_processor(module: Any) -> None:
    module.set_processor(getattr(module, _BEFORE)[0])
    delattr(module, _BEFORE)
    del module.sla


def _attach_forward(forward: Callable[..., Any]) -> Callable[[Any, SparseLinearAttention], None]:
    def attach(module: Any, layer: SparseLinearAttention) -> None:
        # A partial, unlike a bound method, is copied and pickled together with the module.
        setattr(module, _BEFORE, (module.__dict__.get("forward"),))
        module.forward = functools.partial(forward, module)
        module.sla = layer

    return attach


def _detach_forward(module: Any) -> None:
    (before,) = getattr(module, _BEFORE)
    delattr(module, _BEFORE)
    del module.forward, module.sla
    if before is not None:
        module.forward = before


def _keep_forward(module: nn.Module, *_: Any) -> None:
    """A hook that does nothing: nn.TransformerEncoderLayer passes attention by in evaluation unless there is a hook."""


def _attach_multihead(module: Any, layer: SparseLinearAttention) -> None:
    _attach_forward(_multihead_forward)(module, layer)
    module._sla_hook = module.register_forward_pre_hook(_keep_forward)


def _detach_multihead(module: Any) -> None:
    module._sla_hook.remove()
    del module._sla_hook
    _detach_forward(module)


def _refuses_multihead(module: Any) -> str | None:
    if not module._qkv_same_embed_dim:
        return "kdim or vdim differ from embed_dim, so it is cross-attention"
    if module.bias_k is not None or module.add_zero_attn:
        return "add_bias_kv and add_zero_attn are not supported"
    return None


def _looks_like_timm(module: nn.Module) -> bool:
    """The projections of timm's ``Attention`` and nothing beyond: no bias tables, no rotary embedding, no windows."""
    children = {name for name, _ in module.named_children()}
    allowed = {"qkv", "proj", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj_drop", "sla"}
    if not {"qkv", "proj"} <= children <= allowed or not hasattr(module, "num_heads"):
        return False
    takes = set(inspect.signature(type(module).forward).parameters) - {"self", "x", "attn_mask", "is_causal"}
    return isinstance(module.qkv, nn.Linear) and not takes and not any(True for _ in module.parameters(recurse=False))


def _looks_like_transformers(module: nn.Module) -> bool:
    """A module whose forward looks its attention up in transformers' interface."""
    forward = inspect.unwrap(type(module).forward)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return "ALL_ATTENTION_FUNCTIONS" in names and hasattr(module, "config")


def _refuses_transformers(module: Any) -> str | None:
    if getattr(module, "is_causal", True):
        return "it is causal, and sparse-linear attention is defined for attention in both directions only"
    # A decoder's attention that is not causal looks at the encoder.
    if "Cross" in type(module).__name__ or any(
        getattr(module, flag, False) for flag in ("is_cross_attention", "is_decoder")
    ):
        return "it is cross-attention"
    if not (hasattr(module, "head_dim") or hasattr(module, "attention_head_size")):
        return "it says neither head_dim nor attention_head_size"
    return None


def _attach_transformers(module: Any, layer: SparseLinearAttention) -> None:
    register_transformers()
    setattr(module, _BEFORE, (module.config,))
    # A configuration of its own: the model's is shared with cross-attention and with modules that were not named.
    module.config = copy.deepcopy(module.config)
    module.config._attn_implementation = "sla"
    module.sla = layer


def _detach_transformers(module: Any) -> None:
    (module.config,) = getattr(module, _BEFORE)
    delattr(module, _BEFORE)
    del module.sla


def _attach_dit(module: Any, layer: SparseLinearAttention) -> None:
    setattr(module, _BEFORE, (module.attend,))
    module.attend = layer


def _detach_dit(module: Any) -> None:
    (before,) = getattr(module, _BEFORE)
    delattr(module, _BEFORE)
    del module.attend
    module.attend = before


def _no_reason(module: Any) -> None:
    return None


_FAMILIES = (
    _Family(
        owns=lambda module: _is(module, "diffusers", "WanAttention"),
        refuses=lambda module: "it is cross-attention" if module.is_cross_attention else None,
        head_dim=lambda module: module.inner_dim // module.heads,
        attach=_attach_processor(WanProcessor),
        detach=_detach_processor,
    ),
    _Family(
        owns=lambda module: (
            _is(module, "diffusers", "Attention")
            and (
                isinstance(module.processor, CogVideoXProcessor)
                or _is(module.processor, "diffusers", "CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0")
            )
        ),
        refuses=_no_reason,
        head_dim=lambda module: module.inner_dim // module.heads,
        attach=_attach_processor(CogVideoXProcessor),
        detach=_detach_processor,
    ),
    _Family(
        owns=_looks_like_transformers,
        refuses=_refuses_transformers,
        head_dim=lambda module: getattr(module, "head_dim", None) or module.attention_head_size,
        attach=_attach_transformers,
        detach=_detach_transformers,
    ),
    _Family(
        owns=lambda module: isinstance(module, nn.MultiheadAttention),
        refuses=_refuses_multihead,
        head_dim=lambda module: module.head_dim,
        attach=_attach_multihead,
        detach=_detach_multihead,
    ),
    _Family(
        owns=lambda module: isinstance(module, dit.SelfAttention),
        refuses=_no_reason,
        head_dim=lambda module: module.head_dim,
        attach=_attach_dit,
        detach=_detach_dit,
    ),
    _Family(
        owns=_looks_like_timm,
        refuses=_no_reason,
        head_dim=lambda module: module.qkv.out_features // (3 * module.num_heads),
        attach=_attach_forward(_qkv_forward),
        detach=_detach_forward,
    ),
)
