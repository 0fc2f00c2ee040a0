"""The autoregressive Energy-Based Transformer: text and a candidate for each next token to energies (arXiv 2507.02092).

A candidate is a distribution over the vocabulary. It starts as noise and walks down its energy; what it comes to are the
logits of the next token. All positions walk at once: the candidate for position ``p`` attends to the tokens before ``p``
and to itself (the paper's doubled sequence), so a position's energy depends on no other candidate.

Tokens never attend to candidates. Their keys and values are therefore computed once per landscape by fused attention,
kept for every step and every candidate, and in generation extended token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.papers.ebt.block import Block, KeysValues
from everyformer.papers.ebt.descent import (
    S1,
    SMALLEST_ALPHA,
    Recipe,
    ReplayBuffer,
    Walk,
    descend,
    step_size,
    thinking_schedule,
)  # fmt: skip
from everyformer.parts.dit import modulate
from everyformer.parts.language import Attention, Cache, check_tokens, draw, rotary

Kind = Literal["plain", "time_embed", "adaln", "adaln_zero"]
"""How the energy knows its landscape: not at all, by a token before the text, by adaptive norms (that start as nothing)."""
Normalise = Literal["each", "first", "never"]
"""Before which steps the softmax is taken: each, those on the first landscape, none."""


@dataclasses.dataclass
class Thought:
    """What thinking came to.

    Attributes:
        logits: of the next token at each position, the best candidate's.
        energy: of that candidate: how badly it fits the text.
        path: logits after each step of the candidate that was best in the end.
    """

    logits: Float[Tensor, "batch tokens vocabulary"]
    energy: Float[Tensor, "batch tokens"]
    path: list[Float[Tensor, "batch tokens vocabulary"]]


class EBT(nn.Module):
    """Energy-Based Transformer for text: ``model(tokens)`` walks, ``model.loss(tokens)`` trains, ``model.think`` predicts.

    Args:
        vocabulary, dim, depth, heads: sizes.
        hidden: width of the SwiGLU; ``dim`` by default, as the authors have it.
        longest: tokens of the longest text.
        kind: how the energy knows its landscape, see :data:`Kind`.
        landscapes: how many energies differ by their step; steps beyond them stay on the last.
        alpha: first step size; large, because slopes of a mean field are small.
        learn_alpha: whether it is trained; see :func:`parameter_groups` for its own rate.
        start: standard deviation of the noise that candidates start from.
        normalise: before which steps candidates go through a softmax.
        tied: candidates are embedded by the tokens' embedding instead of a matrix of their own.
        recipe: how candidates walk in training.

    Raises:
        ValueError: a size that does not divide, an unknown kind, ``alpha`` or ``landscapes`` not above 0.
    """

    table: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        longest: int = 256,
        kind: Kind = "time_embed",
        landscapes: int = 2,
        alpha: float = 500.0,
        learn_alpha: bool = True,
        start: float = 1.0,
        normalise: Normalise = "each",
        tied: bool = False,
        recipe: Recipe = S1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        _one_of("kind", kind, get_args(Kind))
        _one_of("normalise", normalise, get_args(Normalise))
        if landscapes < 1:
            raise ValueError(f"landscapes must be at least 1, got {landscapes}")
        if start < 0:
            raise ValueError(f"start must be at least 0, got {start}")
        self.vocabulary, self.longest, self.kind, self.landscapes = vocabulary, longest, kind, landscapes
        self.start, self.normalise, self.recipe = start, normalise, recipe
        conditioned = kind in ("adaln", "adaln_zero")
        self.alpha = step_size(alpha, learn_alpha)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.candidate = None if tied else nn.Linear(vocabulary, dim, bias=False)
        self.landscape = None if kind == "plain" else nn.Embedding(landscapes, dim)
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden or dim, conditioned=conditioned, eps=eps) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps)
        self.adaptive = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim)) if conditioned else None
        # Without a bias: a constant added to every energy changes no slope.
        self.energy_head = nn.Linear(dim, 1, bias=False)
        self.before = int(kind == "time_embed")  # tokens before the text
        self.register_buffer("table", rotary(torch.arange(longest + 1 + self.before), dim // heads), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier's normal weights, as the authors have them; with ``adaln_zero`` what conditions starts as nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.kind == "adaln_zero":
            silent = [self.energy_head, *(m[1] for n, m in self.named_modules() if n.endswith("adaptive"))]  # type: ignore[index]
            for layer in silent:
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def read(self, tokens: Int[Tensor, "batch tokens"], *, caches: Sequence[Cache] | None = None) -> list[KeysValues]:
        """Keys and values of a text, by landscape and layer; with caches ``tokens`` follow what is in them.

        Raises:
            ValueError: tokens outside the vocabulary, or a text longer than ``longest``.
        """
        if not torch.compiler.is_compiling():
            check_tokens(tokens, self.vocabulary, "tokens")
        past = max(0, caches[0].length - self.before) if caches else 0
        if past + tokens.shape[1] > self.longest:
            raise ValueError(f"tokens must be at most longest {self.longest}, got {past + tokens.shape[1]}")
        found = []
        for landscape in range(1 if self.landscape is None else self.landscapes):
            condition = self._condition(len(tokens), landscape)
            x, first = self.embedding(tokens), past + self.before
            if self.before and not past:
                x, first = torch.cat([condition[:, None], x], 1), 0
            table = self.table[:, first : first + x.shape[1]].to(x.dtype)
            layers: KeysValues = []
            for number, block in enumerate(self.blocks):
                cache = (caches[landscape], number) if caches else None
                x, keys_values = block.read(x, table, condition, cache)  # type: ignore[operator]
                layers.append(keys_values)
            if caches:
                caches[landscape].length += x.shape[1]
            found.append(layers)
        return found

    def energy(
        self,
        context: list[KeysValues],
        candidates: Float[Tensor, "batch candidates vocabulary"],
        positions: Int[Tensor, " candidates"],
        landscape: int = 0,
    ) -> Float[Tensor, "batch candidates"]:
        """The energy of candidates for the tokens at ``positions`` (from 1), given what :meth:`read` gave.

        Raises:
            ValueError: candidates over another vocabulary.
        """
        if candidates.shape[-1] != self.vocabulary:
            raise ValueError(
                f"candidates must have vocabulary {self.vocabulary} in the end, got {candidates.shape[-1]}"
            )
        keys_values = context[min(landscape, len(context) - 1)]
        condition = self._condition(len(candidates), landscape)
        candidates = candidates.to(self.embedding.weight.dtype)
        x = candidates @ self.embedding.weight if self.candidate is None else self.candidate(candidates)
        places = positions + self.before
        table = self.table[:, places].to(x.dtype)
        hidden = torch.arange(keys_values[0][0].shape[2], device=x.device) >= places[:, None]
        for block, layer in zip(self.blocks, keys_values, strict=True):
            x = block.weigh(x, table, condition, layer, hidden)  # type: ignore[operator]
        x = self.norm(x)
        if self.adaptive is not None:
            x = modulate(x, *self.adaptive(condition).chunk(2, -1))
        return self.energy_head(x)[..., 0]  # type: ignore[no-any-return]

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], *, initial: Float[Tensor, "batch tokens vocabulary"] | None = None
    ) -> Walk:
        """The walk of all positions' candidates by the recipe, from noise or from ``initial`` logits."""
        context = self.read(tokens)
        initial = self._noise(*tokens.shape) if initial is None else initial
        if initial.shape != (*tokens.shape, self.vocabulary):
            shape = (*tokens.shape, self.vocabulary)
            raise ValueError(f"initial must be (batch, tokens, vocabulary) = {shape}, got {tuple(initial.shape)}")
        positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        alpha = self.recipe.step_sizes(self.alpha, (*tokens.shape, 1), random=self.training)
        return descend(
            lambda candidates, landscape: self.energy(context, candidates, positions, landscape),
            initial,
            self.recipe.schedule(self.landscapes, random=self.training),
            alpha=alpha,
            prepare=self._prepare,
            detach=self.recipe.detach,
            last_only=self.recipe.last_only,
            noise=self.recipe.noise,
        )

    def loss(
        self,
        pieces: Int[Tensor, "batch tokens+1"],
        *,
        replay: ReplayBuffer | None = None,
        replayed: int = 0,
        ignore: int = -100,
    ) -> Float[Tensor, ""]:
        """Cross entropy (nats) of each next token: the mean over steps, or the last step's where the recipe says so.

        ``replayed`` texts of ``replay`` go on from where they were, beside ``pieces``. Targets ``ignore`` do not count.
        """
        initial, fresh = None, pieces
        if replay is not None:
            old, reached = replay.sample(replayed)
            pieces = torch.cat([pieces, old])
            initial = torch.cat([self._noise(len(fresh), fresh.shape[1] - 1), reached])
        walk = self(pieces[:, :-1], initial=initial)
        if replay is not None:
            replay.keep(fresh, walk.states[-1][: len(fresh)])
        return self.score(walk, pieces[:, 1:], ignore=ignore)

    def score(self, walk: Walk, targets: Int[Tensor, "batch tokens"], *, ignore: int = -100) -> Float[Tensor, ""]:
        """The loss of a walk: for training loops that call the model themselves, such as a wrapped one's."""
        scored = walk.states[-1:] if self.recipe.last_only else walk.states
        losses = [F.cross_entropy(s.flatten(0, 1).float(), targets.flatten(), ignore_index=ignore) for s in scored]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def think(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        steps: int | None = None,
        candidates: int = 1,
        noise: float = 0.0,
    ) -> Thought:
        """Predict every next token by ``steps`` steps from ``candidates`` starts each, and take the lowest in energy.

        Args:
            steps: as many as landscapes by default; further ones stay on the last landscape.
            noise: standard deviation of what is added before each step.

        Raises:
            ValueError: ``steps`` or ``candidates`` below 1.
        """
        positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        return self._think(self.read(tokens), len(tokens), positions, steps, candidates, noise)

    def _think(
        self,
        context: list[KeysValues],
        batch: int,
        positions: Int[Tensor, " tokens"],
        steps: int | None,
        candidates: int,
        noise: float,
    ) -> Thought:
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        places, count = (
            positions.repeat(candidates),
            len(positions),
        )  # candidates of one place stand beside each other's
        schedule = thinking_schedule(self.landscapes, steps)
        walk = descend(
            lambda states, landscape: self.energy(context, states, places, landscape),
            self._noise(batch, len(places)),
            schedule,
            alpha=self.alpha.clamp(min=SMALLEST_ALPHA),
            prepare=self._prepare,
            noise=noise,
            learn=False,
        )
        final = self.energy(context, self._prepare(walk.states[-1], schedule[-1]), places, schedule[-1])
        energy, best = final.unflatten(1, (candidates, count)).min(1)
        index = best[:, None, :, None].expand(-1, 1, -1, self.vocabulary)
        path = [state.detach().unflatten(1, (candidates, count)).gather(1, index)[:, 0] for state in walk.states]
        return Thought(path[-1], energy, path)

    @torch.no_grad()
    def generate(
        self,
        prompt: Int[Tensor, "batch tokens"],
        count: int,
        *,
        steps: int | None = None,
        candidates: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch tokens+count"]:
        """``count`` more tokens, each thought about for itself; ``temperature`` 0 takes the likeliest.

        Keys and values of the text are kept, so a token costs its own pass and its steps.

        Raises:
            ValueError: more tokens than ``longest``, or what :meth:`think` and ``draw`` raise.
        """
        total = prompt.shape[1] + count
        if total > self.longest:
            raise ValueError(
                f"prompt and count must be at most longest {self.longest}, got {prompt.shape[1]} + {count}"
            )
        first: Attention = self.blocks[0].attention  # type: ignore[assignment, union-attr]
        caches = [
            Cache(len(self.blocks), len(prompt), first.heads, total + self.before, first.head_dim, self.norm.weight)
            for _ in range(1 if self.landscape is None else self.landscapes)
        ]
        tokens, newest = prompt, prompt
        for _ in range(count):
            context = self.read(newest, caches=caches)
            position = torch.tensor([tokens.shape[1]], device=prompt.device)
            thought = self._think(context, len(prompt), position, steps, candidates, 0.0)
            newest = draw(thought.logits, temperature=temperature, top_k=top_k, generator=generator)
            tokens = torch.cat([tokens, newest], 1)
        return tokens

    def _condition(self, batch: int, landscape: int) -> Tensor:
        """The embedding of a landscape for each text; without one, zeros that nothing reads."""
        if self.landscape is None:
            return self.norm.weight.new_zeros(batch, 1)
        return self.landscape.weight[landscape].expand(batch, -1)

    def _noise(self, batch: int, count: int) -> Tensor:
        return self.start * torch.randn(batch, count, self.vocabulary, device=self.norm.weight.device)

    def _prepare(self, candidates: Tensor, landscape: int) -> Tensor:
        wanted = self.normalise == "each" or (self.normalise == "first" and landscape == 0)
        return candidates.softmax(-1) if wanted else candidates


def _one_of(name: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
