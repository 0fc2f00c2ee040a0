"""Acting by a causal model alone: actions written token by token, keys and values of the past kept."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.pasta.model import Pasta
from everyformer.parts.language import Cache


class Actor:
    """Acts in one or more copies of an environment at once, by the pretrained model without a head.

    The window shifts when it is full: half of the context stays, and is read anew since time codes count from the
    window's first step. Each action is what one pass over the same window gives.

    Args:
        model: of a component objective, causal (``c-gpt``).
        domain: which of the model's environments; may be left out where there is one.
        cached: whether keys and values are kept; without, every token reads the window again.

    Raises:
        ValueError: another objective, or an unknown domain.
    """

    def __init__(self, model: Pasta, *, domain: str | None = None, cached: bool = True) -> None:
        if not (model.by_component and model.objective.causal):
            raise ValueError(f"model must be of objective c-gpt to act by itself, got {model.objective.name!r}")
        self.model, self.domain, self.cached = model.eval(), domain, cached
        _, self.tokenizer = model.tokenizer_of(domain)
        with torch.no_grad():
            self.codes = model.codes(domain).flatten(0, 1)
            self.middles = self.tokenizer.middle_of(torch.arange(self.tokenizer.bins, device=self.codes.device))
        self.reset()

    def reset(self) -> None:
        """Forget the past: a new episode."""
        self.values: Tensor | None = None
        self.cache: Cache | None = None

    @torch.inference_mode()
    def act(self, observations: Float[Tensor, "batch sensors"]) -> Float[Tensor, "batch actuators"]:
        """The mean action in newest states that follow those before.

        Raises ``ValueError`` for other sizes, NaN, or another batch than before.
        """
        state = self.tokenizer.values(observations)
        past = state[:, :0] if self.values is None else self.values
        if len(past) != len(state):
            raise ValueError(f"observations must be a batch of {len(past)} until reset, got {len(state)}")
        components, context = self.tokenizer.components, self.model.context
        if past.shape[1] == context * components:
            past, self.cache = past[:, -(context // 2) * components :], None
        self.values = torch.cat([past, state], 1)
        for _ in range(self.tokenizer.actuators):
            self.values = torch.cat([self.values, self._told(self._output()).clamp(-1, 1)], 1)
        return self.values[:, -self.tokenizer.actuators :] * self.tokenizer.reach + self.tokenizer.centre

    def _told(self, output: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch 1"]:
        """The mean of the action component that an output says; see :meth:`Pasta.expected`."""
        if self.model.discrete:
            return self.model.logits(output).float().softmax(-1) @ self.middles[:, None]
        return self.model.head(output)  # type: ignore[no-any-return]

    def _output(self) -> Float[Tensor, "batch dim"]:
        """The output at the last token, after reading those that are not in the cache yet."""
        assert self.values is not None
        if self.cached and self.cache is None:
            size, length = self.model.size, len(self.codes)
            self.cache = Cache(
                size.layers, len(self.values), size.heads, length, size.dim // size.heads, self.model.mask
            )
        read = self.cache.length if self.cache is not None else 0
        end = self.values.shape[1]
        x = self.model.components(self.values[:, read:], self.tokenizer, read)
        return self.model.read(x + self.codes[read:end], self.cache)[:, -1]
