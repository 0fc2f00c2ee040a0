"""ByteTransformer: an encoder that computes no padding (arXiv 2210.03052).

The valid tokens of a batch are packed into one long row, everything that works on single tokens (projections, GELU,
residuals, layer norms) runs on that row, attention runs within each sequence, and the result is spread out again at the
end. A model of Hugging Face's keeps its own modules and weights: :func:`convert` changes how its encoder is called.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from everyformer.ops.varlen_attention import varlen_attention

ATTENTION = "everyformer_packed"


@dataclasses.dataclass(frozen=True)
class Packed:
    """The valid tokens of a batch, one after the other (arXiv 2210.03052, section III-D).

    ``values`` (total, ...) holds the tokens, ``cu_seqlens`` (batch + 1,) where each sequence starts and the last ends,
    ``index`` (total,) the place of each token in the flattened batch, ``shape`` the (batch, tokens) it came from.
    """

    values: Float[Tensor, "total ..."]
    cu_seqlens: Int[Tensor, "batch+1"]
    max_seqlen: int
    index: Int[Tensor, "total"]
    shape: tuple[int, int]
    lengths: tuple[int, ...]


def pack(x: Float[Tensor, "batch tokens ..."], mask: Bool[Tensor, "batch tokens"]) -> Packed:
    """Only the tokens where ``mask`` is set, in order.

    Raises:
        ValueError: a mask of another shape, with an empty sequence, or with holes (sequences must be padded on one side).
    """
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask must be (batch, tokens) = {tuple(x.shape[:2])}, got {tuple(mask.shape)}")
    valid = mask.bool()
    counts = valid.sum(1)
    # A run of valid tokens begins where one follows padding or the left edge; one side of padding leaves one run.
    runs = valid[:, :1].sum(1) + (valid[:, 1:] & ~valid[:, :-1]).sum(1)
    lengths = tuple(counts.tolist())
    for row, (length, count) in enumerate(zip(lengths, runs.tolist(), strict=True)):
        if length == 0:
            raise ValueError(f"mask has no valid token in row {row}")
        if count > 1:
            raise ValueError(f"mask has holes in row {row}: sequences must be padded on the left or on the right")
    index = valid.flatten().nonzero().squeeze(1)
    flat = x.flatten(0, 1)
    values = flat if len(index) == len(flat) else flat.index_select(0, index)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    return Packed(values, starts, max(lengths), index, (x.shape[0], x.shape[1]), lengths)


def unpack(packed: Packed, values: Float[Tensor, "total ..."] | None = None) -> Float[Tensor, "batch tokens ..."]:
    """``values`` (by default those packed) spread out to (batch, tokens, ...), zeros at padding.

    Raises:
        ValueError: ``values`` of another number of tokens.
    """
    values = packed.values if values is None else values
    if len(values) != len(packed.index):
        raise ValueError(f"values must hold {len(packed.index)} tokens, got {len(values)}")
    batch, tokens = packed.shape
    if len(values) == batch * tokens:
        return values.unflatten(0, packed.shape)
    spread = values.new_zeros(batch * tokens, *values.shape[1:])
    return spread.index_copy(0, packed.index, values).unflatten(0, packed.shape)


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads total head_dim"],
    key: Float[Tensor, "1 heads total head_dim"],
    value: Float[Tensor, "1 heads total head_dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_lengths: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "1 total heads head_dim"], None]:
    """What transformers' ``AttentionInterface`` calls in a converted model.

    Raises:
        ValueError: called without packed sequences, as by a model that was not converted.
    """
    if packed_lengths is None:
        raise ValueError(f"attention {ATTENTION!r} works in models treated by bytetransformer.convert only")
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    return varlen_attention(q, k, v, packed_lengths, scale=scaling, dropout=dropout).unsqueeze(0), None


@dataclasses.dataclass(frozen=True)
class _Family:
    """How an architecture names its encoder, and whether its attention needs a path of its own."""

    encoder: str
    disentangled: bool = False


SUPPORTED = {
    "BertModel": _Family("encoder"),
    "RobertaModel": _Family("encoder"),
    "XLMRobertaModel": _Family("encoder"),
    "AlbertModel": _Family("encoder"),
    "DistilBertModel": _Family("transformer"),
    "DebertaModel": _Family("encoder", disentangled=True),
}
_HANDLE = "_bytetransformer"


def convert(model: nn.Module) -> nn.Module:
    """Make every Hugging Face encoder in ``model`` compute only its valid tokens, in place; returns the model.

    BERT, RoBERTa, XLM-RoBERTa, ALBERT, DistilBERT and DeBERTa, bare or under any head. Outputs at valid
    positions are those of the model before, and zero at padding; poolers, heads, training and the state dict stay as they
    were. Poolers read the first position, as before: pad on the right for them. A copy of the model is converted too,
    and calls from several threads keep apart. :func:`revert` undoes it.

    Raises:
        TypeError: another architecture; those supported are named.
        ValueError: a decoder, a model that returns attentions or hidden states, or one converted before. When called, a
            mask with holes or an empty sequence, and a request for attentions or hidden states.
    """
    bases = _bases(model)
    for base in bases:
        if hasattr(base, _HANDLE):
            raise ValueError("model has been converted before")
        if getattr(base.config, "is_decoder", False):
            raise ValueError("model must be an encoder: config.is_decoder is set, and packed attention is not causal")
        if getattr(base, "z_steps", 0) > 1:
            raise ValueError(f"model must not repeat its last layer, got z_steps={base.z_steps}")
    _register()
    for base in bases:
        family = SUPPORTED[type(base).__name__]
        encoder = getattr(base, family.encoder)
        object.__setattr__(base, _HANDLE, base.register_forward_pre_hook(_take_mask, with_kwargs=True))
        if family.disentangled:
            _swap(encoder, _DisentangledEncoder)
            for layer in encoder.layer:
                _swap(layer.attention.self, _PerSequence)
        else:
            # A copy: other models may have been built from the same config object.
            private = copy.copy(base.config)
            private._attn_implementation = ATTENTION
            _give_config(encoder, base.config, private)
            _swap(encoder, _Encoder)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undo :func:`convert`; returns the model. Raises ``ValueError`` for one that was not converted."""
    bases = [base for base in _bases(model) if hasattr(base, _HANDLE)]
    if not bases:
        raise ValueError("model has not been converted")
    for base in bases:
        getattr(base, _HANDLE).remove()
        delattr(base, _HANDLE)
        encoder = getattr(base, SUPPORTED[type(base).__name__].encoder)
        for module in encoder.modules():
            if isinstance(module, _Converted):
                module.__class__ = type(module).__bases__[1]
            if getattr(getattr(module, "config", None), "_attn_implementation", None) == ATTENTION:
                module.config = base.config
    return model


class _Converted:
    """Mark of the classes made by :func:`_swap`."""


@functools.cache
def _class_of(treatment: type, original: type) -> type:
    return type(original.__name__, (treatment, original), {"__module__": original.__module__})


def _swap(module: nn.Module, treatment: type) -> None:
    """Put ``treatment`` before the module's own class. A class goes with its module wherever that is copied to, which
    a function bound to this very module would not."""
    module.__class__ = _class_of(treatment, type(module))  # type: ignore[arg-type]


def _bases(model: nn.Module) -> list[Any]:
    """The bare encoder models in ``model``."""
    bases = [module for module in model.modules() if type(module).__name__ in SUPPORTED]
    if not bases:
        names = ", ".join(sorted(SUPPORTED))
        raise TypeError(f"model must be one of {names}, or a model with one inside, got {type(model).__name__}")
    return bases


def _give_config(encoder: nn.Module, old: Any, new: Any) -> None:
    """Let the encoder's modules read their attention's name from ``new``."""
    for module in encoder.modules():
        if getattr(module, "config", None) is old:
            module.config = new


def _register() -> None:
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ImportError as error:
        raise ImportError('transformers is needed: pip install "everyformer[language]"') from error
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _take_mask(
    base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand the padding mask to the encoder by a name of its own, lest the model blow it up to a matrix on the way."""
    config: Any = base.config
    for option in ("output_attentions", "output_hidden_states"):
        if kwargs.get(option) or (kwargs.get(option) is None and getattr(config, option, False)):
            raise ValueError(
                f"{option} is not available in a model that bytetransformer.convert treated; revert it first"
            )
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    if mask is not None and mask.ndim != 2:
        raise ValueError(f"attention_mask must be (batch, tokens), got {tuple(mask.shape)}")
    if SUPPORTED[type(base).__name__].disentangled:
        return args, kwargs  # DeBERTa passes the mask on as it is
    if len(args) > 1:
        args = (args[0], None, *args[2:])
    return args, {**kwargs, "packed_mask": mask} | ({"attention_mask": None} if len(args) < 2 else {})


class _Encoder(_Converted):
    """The encoder's own forward on one packed row, with the lengths on their way to the attention."""

    def forward(
        self, hidden_states: Tensor, attention_mask: None = None, *args: Any, packed_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        mask = torch.ones(hidden_states.shape[:2], device=hidden_states.device) if packed_mask is None else packed_mask
        packed = pack(hidden_states, mask)
        kwargs.pop("position_ids", None)  # used by the embeddings already, and of the unpacked shape
        row = packed.values.unsqueeze(0)
        output = super().forward(row, None, *args, packed_lengths=packed.lengths, **kwargs)  # type: ignore[misc]
        output["last_hidden_state"] = unpack(packed, output["last_hidden_state"].squeeze(0))
        return output


class _DisentangledEncoder(_Converted):
    """DeBERTa's encoder on one packed row."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        packed = pack(hidden_states, attention_mask)
        # The encoder hands both down untouched: no mask is needed, and relative positions are those of each sequence,
        # so that their place is free for the lengths.
        nothing = torch.ones(1, 1, 1, 1, device=hidden_states.device)
        lengths = torch.tensor(packed.lengths)
        return_dict = kwargs.pop("return_dict", True)
        row = packed.values.unsqueeze(0)
        output = super().forward(row, nothing, relative_pos=lengths, return_dict=True, **kwargs)  # type: ignore[misc]
        output["last_hidden_state"] = unpack(packed, output["last_hidden_state"].squeeze(0))
        if output.get("hidden_states") is not None:
            # The model itself asks for these and reads the last one alone.
            output["hidden_states"] = (*output["hidden_states"][:-1], output["last_hidden_state"])
        return output if return_dict else output.to_tuple()


class _PerSequence(_Converted):
    """DeBERTa's own attention, whose scores depend on relative positions, one sequence after the other."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, *args: Any, relative_pos: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        parts = []
        for part in hidden_states.split(relative_pos.tolist(), dim=1):
            length = part.shape[1]
            everything = torch.ones(1, 1, length, length, dtype=torch.bool, device=part.device)
            relative = _relative(length, part.device)
            attend = super().forward  # type: ignore[misc]
            parts.append(attend(part, everything, *args, relative_pos=relative, **kwargs)[0])
        return torch.cat(parts, dim=1), None


def _relative(length: int, device: torch.device) -> Int[Tensor, "1 length length"]:
    """Query position minus key position."""
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions[None, :]).unsqueeze(0)
