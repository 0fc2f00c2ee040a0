"""Training the sampler: what the frozen model would say after each token of its own sequences, said with one layer."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Int
from torch import Tensor

from everyformer.papers.joint_sampling.generation import Order, generate
from everyformer.papers.joint_sampling.model import JointSampler, MaskedLM, Tokens, check_base, check_fit


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Sequences that the base wrote one token at a time, and when each position was filled (-1: in the prompt)."""

    tokens: Int[Tensor, "count length"]
    rank: Int[Tensor, "count length"]


def trajectories(
    base: MaskedLM,
    *,
    length: int,
    count: int = 256,
    prompts: Tokens | None = None,
    order: Order = "random",
    generator: torch.Generator | None = None,
    batch: int = 256,
) -> Trajectories:
    """Draw from the base's joint p*: one token per full pass, temperature 1; ``count`` from nothing, or one per prompt."""
    count = count if prompts is None else len(prompts)
    written = [
        generate(
            base, None, None if prompts is None else prompts[start : start + batch], length=length,
            batch=min(batch, count - start), tokens_per_pass=1, order=order, generator=generator,
        )
        for start in range(0, count, batch)
    ]  # fmt: skip
    return Trajectories(torch.cat([out.sequences for out in written]), torch.cat([out.rank for out in written]))


def examples(
    pool: Trajectories, mask_token: int, tokens_per_pass: int, count: int, generator: torch.Generator | None = None
) -> tuple[Tokens, Tokens]:
    """Sequences as they are at a full pass, and the same ones 1 to K - 1 tokens of their trajectory later.

    Raises:
        ValueError: ``tokens_per_pass`` below 2, or trajectories of fewer than two tokens.
    """
    filled = pool.rank.amax(1) + 1
    if tokens_per_pass < 2:
        raise ValueError(f"tokens_per_pass must be at least 2 for a sampler to be trained, got {tokens_per_pass}")
    if int(filled.min()) < 2:
        raise ValueError(f"pool must hold trajectories of at least 2 tokens, got {int(filled.min())}")
    device = generator.device if generator is not None else torch.device("cpu")
    chosen = torch.randint(len(pool.tokens), (count,), generator=generator, device=device).to(pool.tokens.device)
    tokens, rank, filled = pool.tokens[chosen], pool.rank[chosen], filled[chosen]
    at, more = torch.rand(2, count, generator=generator, device=device).to(tokens.device)
    start = (at * (filled - 1)).long()  # tokens placed at the full pass, with two or more to come
    later = start + 1 + (more * (filled - 1 - start).clamp(max=tokens_per_pass - 1)).long()
    before = tokens.masked_fill(rank >= start[:, None], mask_token)
    return before, tokens.masked_fill(rank >= later[:, None], mask_token)


def sampler_loss(base: MaskedLM, sampler: JointSampler, before: Tokens, after: Tokens) -> Tensor:
    """Mean KL divergence (nats) of the sampler's conditionals from the base's, over what ``after`` still has masked.

    The mean is taken within each sequence first. In a random order the next position is any of them with equal chance,
    so that this is the token's term of KL(p* || p_sampler) with the position averaged out.
    """
    with torch.no_grad():
        states, later = base.states(torch.cat([before, after])).chunk(2)
        masked = after == base.mask_token
        teacher = base.logits(later[masked]).float().log_softmax(-1)
    student = base.logits(sampler(states, base.embed(after))[masked]).float().log_softmax(-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    share = 1 / masked.sum(1, keepdim=True).expand_as(masked)[masked]
    return (divergence * share).sum() / len(after)


def train_sampler(
    base: MaskedLM,
    sampler: JointSampler,
    *,
    length: int,
    prompts: Tokens | None = None,
    tokens_per_pass: int = 8,
    order: Order = "random",
    steps: int = 2000,
    batch: int = 64,
    rate: float = 1e-3,
    pool: int = 2048,
    renew: int = 500,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Train ``sampler`` in place on trajectories of the frozen ``base``; the loss of every step (nats).

    AdamW, 100 steps (at most a tenth) to warm up, then a cosine to zero. ``pool`` trajectories (or one per prompt) are
    drawn anew every ``renew`` steps.

    Raises:
        ValueError: a number below 1, ``tokens_per_pass`` below 2, a causal base, a sampler of another base.
    """
    check_base(base)
    check_fit(sampler, base)
    for name, value in {"steps": steps, "batch": batch, "pool": pool, "renew": renew}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    optimizer = torch.optim.AdamW(sampler.parameters(), rate)
    warm = min(100, max(1, steps // 10))

    def pace(done: int) -> float:
        return (done + 1) / warm if done < warm else 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (steps - warm))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, pace)
    losses = []
    for step in range(steps):
        if step % renew == 0:
            drawn = trajectories(
                base, length=length, count=pool, prompts=prompts, order=order, generator=generator
            )  # fmt: skip
        loss = sampler_loss(base, sampler, *examples(drawn, base.mask_token, tokens_per_pass, batch, generator))
        # The head is the base's: only the sampler's gradients are computed.
        gradients = torch.autograd.grad(loss, list(sampler.parameters()))
        for parameter, gradient in zip(sampler.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses
