"""Two-stage training (arXiv 2511.08577, section 3.3): labels by a reference model, the decider's loss, pruned layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from everyformer.papers.tah.model import TaHForCausalLM
from everyformer.parts.language import check_tokens

POSITIVE_WEIGHT = 4.8  # of hard tokens in the decider's loss, the authors' value


@torch.no_grad()
def hard_tokens(
    reference: nn.Module,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
    labels: Int[Tensor, "batch tokens"] | None = None,
) -> Int[Tensor, "batch tokens"]:
    """The oracle's depths: 2 where the reference's likeliest next token is wrong, 1 elsewhere.

    Args:
        reference: a causal language model with the same vocabulary, which returns an output with ``logits``.
        labels: the tokens, with -100 for those that need not be predicted; what stands before them is easy.

    Raises:
        ValueError: tokens outside the reference's vocabulary.
    """
    vocabulary = getattr(getattr(reference, "config", None), "vocab_size", None)
    if vocabulary is not None:
        check_tokens(input_ids, vocabulary, "input_ids")
    guess = reference(input_ids, attention_mask=attention_mask).logits[:, :-1].argmax(-1)
    wanted = (input_ids if labels is None else labels)[:, 1:]
    wrong = (guess != wanted) & (wanted != -100)
    if attention_mask is not None:
        wrong &= (attention_mask[:, 1:] & attention_mask[:, :-1]).bool()
    return F.pad(1 + wrong.long(), (0, 1), value=1)


def freeze(model: TaHForCausalLM) -> TaHForCausalLM:
    """Leave only the decider to be trained, as in the second stage; the same model."""
    model.requires_grad_(False)
    model.decider.requires_grad_(True)
    return model


def decider_loss(
    model: nn.Module,
    input_ids: Int[Tensor, "batch tokens"],
    depths: Int[Tensor, "batch tokens"],
    labels: Int[Tensor, "batch tokens"] | None = None,
    *,
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
    positive_weight: float = POSITIVE_WEIGHT,
) -> Float[Tensor, ""]:
    """Binary cross entropy of the decider against the oracle's depths, hard tokens weighted more.

    Args:
        model: a :class:`TaHForCausalLM`, or what wraps one.
        labels: -100 for tokens that need not be predicted; what stands before them does not count.
    """
    # What the last pass gives, the decider is not asked about.
    deepest: int = model.config.max_depth  # type: ignore[assignment,union-attr]
    out = model(input_ids, attention_mask, depths=depths.clamp(max=max(deepest - 1, 1)), return_scores=True)
    counts = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if labels is not None:
        counts = counts & F.pad(labels[:, 1:] != -100, (0, 1))
    after = torch.arange(1, deepest, device=input_ids.device)
    asked = counts[..., None] & (out.depths[..., None] >= after)
    target = (depths[..., None] > after).to(out.scores)
    weight = out.scores.new_tensor(positive_weight)
    return F.binary_cross_entropy_with_logits(out.scores[asked], target[asked], pos_weight=weight)


def prune(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Take a layer out of a Qwen3 or Llama model, in place, so that decider and low-rank weights have room; the model.

    Raises:
        ValueError: no such layer, or the only one.
    """
    config: Any = model.config
    layers: Any = model.model.layers
    if not 0 <= layer < len(layers) or len(layers) == 1:
        raise ValueError(f"layer must be one of the model's {len(layers)}, and not the only one, got {layer}")
    del layers[layer]
    for number, block in enumerate(layers):
        block.self_attn.layer_idx = number
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [kind for number, kind in enumerate(config.layer_types) if number != layer]
    return model


@torch.no_grad()
def least_needed(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch tokens"], labels: Int[Tensor, "batch tokens"]
) -> int:
    """The layer without which the loss on these tokens is lowest."""
    layers: Any = model.model.layers
    losses = []
    for number in range(len(layers)):
        # A skipped layer gives back what it was given.
        handle = layers[number].register_forward_hook(lambda module, args, kwargs, output: args[0], with_kwargs=True)
        losses.append(float(model(input_ids, labels=labels).loss))
        handle.remove()
    return losses.index(min(losses))
