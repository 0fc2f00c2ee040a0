"""Writing with a masked diffusion language model: K tokens for each full pass, one after the other with the sampler."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.papers.joint_sampling.model import JointSampler, MaskedLM, Tokens, check_base, check_fit, taken
from everyformer.parts.language import check_tokens

Order = Literal["random", "confidence", "entropy", "margin"]
ORDERS: tuple[str, ...] = get_args(Order)


@dataclasses.dataclass
class GenerationOutput:
    """What was written, and how.

    Attributes:
        sequences: the finished tokens.
        full_passes, sampler_passes: how often the model and the sampler ran.
        positions: where each token was placed, in that order; -1 where a sequence had no more to fill.
        placed: tokens after each full pass.
        mask_token: the base's.
    """

    sequences: Tokens
    full_passes: int
    sampler_passes: int
    positions: Int[Tensor, "batch filled"]
    placed: tuple[int, ...]
    mask_token: int

    @property
    def rank(self) -> Tokens:
        """When each position was filled, counted from 0; -1 where the prompt was."""
        rank = torch.full_like(self.sequences, -1)
        for number, position in enumerate(self.positions.T):
            filled = (position >= 0).nonzero()[:, 0]
            rank[filled, position[filled]] = number
        return rank

    @property
    def history(self) -> Int[Tensor, "passes batch tokens"]:
        """The sequences after each full pass and the sampler passes that followed it."""
        ends = torch.tensor(self.placed, device=self.sequences.device).cumsum(0)
        return torch.where(self.rank < ends[:, None, None], self.sequences, self.mask_token)


@torch.no_grad()
def generate(
    model: MaskedLM,
    sampler: JointSampler | None = None,
    prompt: Tokens | None = None,
    *,
    length: int | None = None,
    batch: int = 1,
    tokens_per_pass: int | Sequence[int] = 4,
    order: Order = "random",
    temperature: float = 1.0,
    top_p: float | None = None,
    infill: bool = False,
    generator: torch.Generator | None = None,
    stream: Callable[[Tokens], None] | None = None,
) -> GenerationOutput:
    """Fill masked positions (section "Method" of arXiv 2509.22738); without a sampler, from the marginals alone.

    Args:
        prompt: tokens that stay; ``batch`` empty ones by default.
        length: tokens of the finished sequences, prompt included; with ``infill``, the prompt's own by default.
        tokens_per_pass: K, or how many at each full pass. With 1 the sampler is never called.
        order: which position is next: at random, or the one of the largest probability, the lowest entropy or the
            largest margin between the two likeliest tokens, by the newest logits.
        temperature: 0 takes the likeliest token.
        top_p: draw among the likeliest tokens that have this probability together.
        infill: masks in the prompt are to be filled.
        generator: the same one gives every position the same random number whatever ``tokens_per_pass`` is.
        stream: called with the sequences as they are after each full pass and its sampler passes.

    Raises:
        ValueError: an option outside its range, masks in the prompt without ``infill``, more tokens than the base has
            positions for, a causal base, a sampler of another base.
        TypeError: a base that is no masked language model of this package.
    """
    check_base(model)
    if sampler is not None:
        check_fit(sampler, model)
    _check_options(order, temperature, top_p)
    tokens = _started(model, prompt, length, batch, infill)
    masked = tokens == model.mask_token
    placed = _placed(tokens_per_pass, int(masked.sum(1).max()))
    device = generator.device if generator is not None else tokens.device
    chances, priority = torch.rand(2, *tokens.shape, generator=generator, device=device).to(tokens.device)
    positions: list[Tensor] = []
    sampler_passes = 0

    def fill(states: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Draw at ``count`` of the rows; where (batch, count), and what is there now."""
        probabilities = _distribution(model.logits(states), model.mask_token, temperature, top_p)
        open_ = masked.gather(1, rows)
        if order != "random":
            # Stable: of equally sure rows (all are, before anything is visible) the first, however many are taken.
            sure = _score(probabilities, order).masked_fill(~open_, -math.inf)
            best = sure.argsort(dim=1, descending=True, stable=True)[:, :count]
            rows, open_, probabilities = rows.gather(1, best), open_.gather(1, best), taken(probabilities, best)
        drawn = _draw(probabilities, chances.gather(1, rows), temperature)
        drawn = torch.where(open_, drawn, tokens.gather(1, rows))
        tokens.scatter_(1, rows, drawn)
        masked.scatter_(1, rows, False)
        positions.append(rows.masked_fill(~open_, -1))
        return rows, drawn

    def candidates(count: int) -> Tensor:
        """Rows that need logits: the next ones of a random order, otherwise all that are masked."""
        many = count if order == "random" else int(masked.sum(1).max())
        return priority.masked_fill(~masked, -1.0).topk(many, dim=1).indices

    for count in placed:
        states = model.states(tokens)
        first = count if sampler is None else 1
        rows = candidates(first)  # the same until the next full pass where they are scored, so that rounding is, too
        where, what = fill(taken(states, rows), rows, first)
        if sampler is not None and count > 1:
            memory = sampler.begin(states, model.embed(tokens))
            for number in range(1, count):
                if number > 1:
                    sampler.update(memory, where, model.embed(what))
                rows = candidates(1) if order == "random" else rows
                where, what = fill(sampler.query(memory, rows), rows, 1)
                sampler_passes += 1
        if stream is not None:
            stream(tokens.clone())
    return GenerationOutput(
        tokens, len(placed), sampler_passes, torch.cat(positions, dim=1), tuple(placed), model.mask_token
    )


def dream_schedule(masked: int, steps: int, eps: float = 1e-3) -> list[int]:
    """Tokens at each of Dream's steps: times from 1 to ``eps`` in a line, the share 1 - s/t of the masks at each.

    Steps at which none would be placed are left out.
    """
    if masked < 1 or steps < 1:
        raise ValueError(f"masked and steps must be at least 1, got {masked} and {steps}")
    times = torch.linspace(1, eps, steps + 1)
    counts, left = [], masked
    for step in range(steps):
        share = 1 - times[step + 1] / times[step]
        counts.append(int(left * share) if step < steps - 1 else left)
        left -= counts[-1]
    return [count for count in counts if count]


def custom_generate(sampler: JointSampler | None, base: MaskedLM) -> Callable[..., Tokens]:
    """For ``model.generate(ids, custom_generate=...)`` of transformers, whose model ``base`` wraps.

    ``tokens_per_pass`` and ``order`` are read from the call, ``max_length`` (or ``max_new_tokens``), ``temperature``,
    ``top_p`` and ``do_sample`` from the generation configuration.
    """

    def decode(
        model: object,
        input_ids: Tokens,
        logits_processor: object = None,
        stopping_criteria: object = None,
        generation_config: object = None,
        tokens_per_pass: int = 4,
        order: Order = "random",
        **_: object,
    ) -> Tokens:
        config = vars(generation_config)
        temperature = config.get("temperature")
        return generate(
            base, sampler, input_ids, length=config["max_length"], tokens_per_pass=tokens_per_pass, order=order,
            temperature=(1.0 if temperature is None else temperature) if config.get("do_sample") else 0.0,
            top_p=config.get("top_p"),
        ).sequences  # fmt: skip

    return decode


def _distribution(
    logits: Float[Tensor, "batch rows vocabulary"], mask_token: int, temperature: float, top_p: float | None
) -> Float[Tensor, "batch rows vocabulary"]:
    """Probabilities to draw from; the mask itself is never drawn."""
    logits = logits.float().index_fill(-1, torch.tensor([mask_token], device=logits.device), -math.inf)
    if temperature > 0:
        logits = logits / temperature
    probabilities = logits.softmax(-1)
    if top_p is None or top_p >= 1:
        return probabilities
    ranked, tokens = probabilities.sort(dim=-1, descending=True)
    ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)  # the first is always kept
    kept = torch.zeros_like(probabilities).scatter(-1, tokens, ranked)
    return kept / kept.sum(-1, keepdim=True)


def _score(probabilities: Float[Tensor, "batch rows vocabulary"], order: str) -> Float[Tensor, "batch rows"]:
    """How sure the model is of each row."""
    if order == "confidence":
        return probabilities.amax(-1)
    if order == "entropy":
        return torch.xlogy(probabilities, probabilities).sum(-1)
    first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
    return first - second


def _draw(
    probabilities: Float[Tensor, "batch rows vocabulary"], chances: Float[Tensor, "batch rows"], temperature: float
) -> Int[Tensor, "batch rows"]:
    """The first token at which the cumulative probability exceeds a chance in [0, 1)."""
    if temperature == 0:
        return probabilities.argmax(-1)
    cumulative = probabilities.double().cumsum(-1)  # in double, so that chance times total stays below the total
    target = chances[..., None].double() * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0]


def _started(model: MaskedLM, prompt: Tokens | None, length: int | None, batch: int, infill: bool) -> Tokens:
    """Prompt and masks."""
    device = model.last_block().mlp_norm.weight.device
    if prompt is None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if length is None:
            raise ValueError("length must be given where there is no prompt")
        prompt = torch.empty(batch, 0, dtype=torch.long, device=device)
    else:
        check_tokens(prompt, model.sizes.vocabulary, "prompt")
        if not infill and bool((prompt == model.mask_token).any()):
            raise ValueError(f"prompt must not hold the mask token {model.mask_token} unless infill=True")
        if length is None and not infill:
            raise ValueError("length must be given unless infill=True")
    length = prompt.shape[1] if length is None else length
    if not max(1, prompt.shape[1]) <= length <= model.sizes.longest:
        raise ValueError(
            f"length must be from the prompt's {prompt.shape[1]} to the base's {model.sizes.longest} positions, got {length}"
        )
    tokens = torch.full((len(prompt), length), model.mask_token, dtype=torch.long, device=device)
    tokens[:, : prompt.shape[1]] = prompt
    if not bool((tokens == model.mask_token).any()):
        raise ValueError(f"length must leave something to fill, got {length} for a prompt of {prompt.shape[1]} tokens")
    return tokens


def _placed(tokens_per_pass: int | Sequence[int], masked: int) -> list[int]:
    """How many tokens each full pass places; together ``masked``."""
    if not isinstance(tokens_per_pass, int):
        counts = list(tokens_per_pass)
        if min(counts, default=0) < 1 or sum(counts) != masked:
            raise ValueError(f"tokens_per_pass must be at least 1 each and {masked} together, got {counts}")
        return counts
    if tokens_per_pass < 1:
        raise ValueError(f"tokens_per_pass must be at least 1, got {tokens_per_pass}")
    if tokens_per_pass > masked:
        warnings.warn(f"tokens_per_pass {tokens_per_pass} clipped to the {masked} masked positions", stacklevel=3)
    return [min(tokens_per_pass, masked - start) for start in range(0, masked, tokens_per_pass)]


def _check_options(order: str, temperature: float, top_p: float | None) -> None:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
