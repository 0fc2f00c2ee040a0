"""MLM-U: fill in whatever is hidden of a path, at any rate of hiding (arXiv 2412.05117, section 3).

A filler is any callable ``(prompt, path) -> logits`` of the path's places, where hidden places of the path hold a mask
token: :class:`~everyformer.papers.maze_mlmu.model.PAST` is one; :func:`joined` and :func:`two_stacks` make one of other
transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from everyformer.parts.language import EncoderDecoder, LanguageModel

Filler = Callable[[Tensor, Tensor], Any]


def joined(model: Callable[[Tensor], Any]) -> Filler:
    """A filler of a transformer that sees both sides, such as BERT: it reads the prompt and the path as one sequence.

    Raises:
        ValueError: a causal model of ours.
    """
    if getattr(model, "causal", False) is True:
        raise ValueError("model must see both sides, got one with causal=True")
    return lambda prompt, path: logits_of(model(torch.cat([prompt, path], 1)))[:, prompt.shape[1] :]


def two_stacks(model: EncoderDecoder) -> Filler:
    """A filler of an encoder-decoder: it encodes the prompt and decodes the path after the prompt's last token.

    That token is never hidden; from it the others, which look alike where all are hidden, know their places.

    Raises:
        TypeError, ValueError: another class, or one whose decoder is causal.
    """
    if not isinstance(model, EncoderDecoder):
        raise TypeError(f"model must be an EncoderDecoder, got {type(model).__name__}")
    if model.causal:
        raise ValueError("model must decode in any order, got one with causal=True")
    return lambda prompt, path: model(prompt, torch.cat([prompt[:, -1:], path], 1))[:, 1:]


def logits_of(output: Any) -> Tensor:
    """Logits as they are, or out of an output of transformers.

    Raises:
        TypeError: neither.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return logits or an output that has them, got {type(output).__name__}")
    return logits


def draw_mask(
    path: Int[Tensor, "batch tokens"],
    *,
    padding: int | None = None,
    rate: float | None = None,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "batch tokens"]:
    """Which tokens to hide and predict: each at its sequence's rate, which is uniform between 0 and 1; no padding.

    Args:
        rate: the same rate for every sequence instead.

    Raises:
        ValueError: a rate that is not between 0 and 1.
    """
    if rate is not None and not 0 < rate < 1:
        raise ValueError(f"rate must be above 0 and below 1, got {rate}")
    drawn = torch.rand(path.shape[0], path.shape[1] + 1, generator=generator, device=path.device)
    rates = drawn[:, :1] if rate is None else rate
    masked = drawn[:, 1:] < rates
    return masked if padding is None else masked & (path != padding)


def mlm_u_loss(
    model: Filler,
    prompt: Int[Tensor, "batch prompt"],
    path: Int[Tensor, "batch tokens"],
    *,
    mask_token: int,
    padding: int | None = None,
    rate: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Mean cross entropy, in nats, of the hidden tokens of a path given its prompt and all that is not hidden.

    Padding looks like hidden tokens, so that nothing tells a path's length, and is not predicted.

    Args:
        padding: the token that fills paths up; without it every token counts.
        rate: see :func:`draw_mask`.

    Raises:
        ValueError: batches, vocabularies or a rate that do not fit.
        TypeError: a model that returns no logits.
    """
    if len(prompt) != len(path):
        raise ValueError(f"prompt and path must be as many, got {len(prompt)} and {len(path)}")
    masked = draw_mask(path, padding=padding, rate=rate, generator=generator)
    hidden = masked if padding is None else masked | (path == padding)
    logits = logits_of(model(prompt, path.masked_fill(hidden, mask_token)))
    if logits.shape[:-1] != path.shape:
        raise ValueError(f"model must give logits for {tuple(path.shape)} tokens, got {tuple(logits.shape)}")
    largest = max(mask_token, int(path.max()))
    if largest >= logits.shape[-1]:
        raise ValueError(f"mask_token and path must be below the model's vocabulary {logits.shape[-1]}, got {largest}")
    return loss_of(logits, path, masked)


def loss_of(
    logits: Float[Tensor, "batch tokens vocabulary"],
    tokens: Int[Tensor, "batch tokens"],
    counted: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """Mean cross entropy of the tokens that count, over the whole batch; 0 where none does."""
    targets = tokens.masked_fill(~counted, -100)
    total = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
    return total / counted.sum().clamp(min=1)


def next_token_loss(
    model: Callable[[Tensor], Any],
    prompt: Int[Tensor, "batch prompt"],
    path: Int[Tensor, "batch tokens"],
    *,
    padding: int | None = None,
) -> Float[Tensor, ""]:
    """The baseline: mean cross entropy of each token of a path given all before it, by any causal model."""
    tokens = torch.cat([prompt, path], 1)
    logits = logits_of(model(tokens[:, :-1]))[:, prompt.shape[1] - 1 :]
    return loss_of(logits, path, torch.ones_like(path, dtype=torch.bool) if padding is None else path != padding)


@torch.no_grad()
def fill(
    model: Filler,
    prompt: Int[Tensor, "batch prompt"],
    length: int,
    *,
    mask_token: int,
    end: int,
    order: Literal["left", "confidence"] = "left",
) -> Int[Tensor, "batch length"]:
    """Paths by a filler, one token of every path for each pass over the batch.

    Args:
        length: of the longest path, its end included.
        end: the token at which a path ends; what stays hidden behind it is returned as ``mask_token``.
        order: from left to right as the paper, or the likeliest token first. Then the end comes before all others, at
            the first place where nothing is likelier, for nothing was ever learned of the places behind it.

    Raises:
        ValueError: another order, or a length below 1.
    """
    if order not in ("left", "confidence"):
        raise ValueError(f"order must be left or confidence, got {order!r}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    path = torch.full((len(prompt), length), mask_token, device=prompt.device)
    rows, places = torch.arange(len(prompt), device=prompt.device), torch.arange(length, device=prompt.device)
    for step in range(length):
        logits = logits_of(model(prompt, path)).float()
        logits[..., mask_token] = -torch.inf
        if order == "left":
            path[:, step] = logits[:, step].argmax(-1)
            if bool((path == end).any(1).all()):
                break
            continue
        if step == 0:
            says_end = logits.argmax(-1) == end
            likeliest = F.one_hot(logits.log_softmax(-1)[..., end].argmax(1), length).bool()
            path[rows, torch.where(says_end.any(1, keepdim=True), says_end, likeliest).int().argmax(1)] = end
            last = (path == end).int().argmax(1)
            continue
        logits[..., end] = -torch.inf
        open_ = (path == mask_token) & (places < last[:, None])
        if not open_.any():
            break
        likelihood, token = logits.log_softmax(-1).max(-1)
        chosen = likelihood.masked_fill(~open_, -torch.inf).argmax(1)
        path[rows, chosen] = torch.where(open_.any(1), token[rows, chosen], path[rows, chosen])
    ended = (path == end).int().cumsum(1) - (path == end).int() > 0
    return path.masked_fill(ended, mask_token)


def write(model: LanguageModel, prompt: Int[Tensor, "batch prompt"], length: int) -> Int[Tensor, "batch length"]:
    """Paths by a next-token model, the likeliest token each time, with a cache; what follows an end means nothing.

    Raises:
        TypeError, ValueError: another class, a model that is not causal, or more tokens than it takes.
    """
    if not isinstance(model, LanguageModel):
        raise TypeError(f"model must be a LanguageModel, got {type(model).__name__}")
    return model.generate(prompt, length, temperature=0.0)[:, prompt.shape[1] :]
