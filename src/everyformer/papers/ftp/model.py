"""Future Token Prediction (arXiv 2410.18160): each state of a causal encoder is enough for a decoder to write what follows.

The encoder's top vector at a place becomes, by one linear map, a short pseudo-sequence. A small decoder attends to that
and to the tokens it has written since, and gives the next ``ahead`` tokens. Nothing else of the past reaches it, so the
vector has to say what is coming rather than which token is next.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.parts.language import Block, Cache, LanguageModel, check_tokens, hidden_width, initialise, rotary


@dataclasses.dataclass(frozen=True)
class Speculation:
    """Tokens (1, prompt + count) written by :meth:`FutureTokenPredictor.speculate`, and how many passes of the encoder
    checked them; a model that writes token by token takes as many passes as tokens."""

    tokens: Int[Tensor, "1 tokens"]
    passes: int


class FutureTokenPredictor(nn.Module):
    """A causal encoder, a linear expansion of its states, and a small decoder of the tokens after each of them.

    ``forward`` gives logits of the next token at every place, as a GPT does. The embedding of encoder and decoder and
    the head share their weights.

    Args:
        vocabulary, dim, depth, heads, longest: of the encoder, as in :class:`~everyformer.parts.language.LanguageModel`.
        ahead: tokens that the decoder predicts, N in the paper.
        pseudo: vectors of the pseudo-sequence.
        decoder_depth: blocks of the decoder.

    Raises:
        ValueError: ``ahead``, ``pseudo`` or ``decoder_depth`` below 1, or sizes that do not divide.
    """

    table: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        ahead: int = 8,
        pseudo: int = 8,
        decoder_depth: int = 3,
        longest: int = 2048,
    ) -> None:
        super().__init__()
        for name, value in (("ahead", ahead), ("pseudo", pseudo), ("decoder_depth", decoder_depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.ahead, self.pseudo = ahead, pseudo
        self.encoder = LanguageModel(vocabulary=vocabulary, dim=dim, depth=depth, heads=heads, longest=longest)
        self.expand = nn.Linear(dim, pseudo * dim)
        self.start = nn.Parameter(0.02 * torch.randn(dim))  # stands before the first token that the decoder writes
        self.decoder = nn.ModuleList(Block(dim, heads, hidden_width(dim), cross=True) for _ in range(decoder_depth))
        self.norm = nn.RMSNorm(dim, 1e-6)
        initialise(self.decoder, decoder_depth)
        nn.init.normal_(self.expand.weight, std=dim**-0.5)
        nn.init.zeros_(self.expand.bias)
        self.register_buffer("table", rotary(torch.arange(ahead), dim // heads), persistent=False)

    def embed(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The encoder's top vector at each place: what is known there about what follows.

        Raises:
            ValueError: tokens outside the vocabulary, or more than ``longest``.
        """
        check_tokens(tokens, self.encoder.vocabulary, "tokens")
        return self.encoder.hidden(tokens)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits of each next token: the decoder's first step from every place."""
        states = self.encoder.hidden(tokens)
        nothing = tokens.new_empty(tokens.numel(), 0)
        return self.decode(states.flatten(0, 1), nothing).view(*tokens.shape, -1)

    def decode(
        self, states: Float[Tensor, "rows dim"], written: Int[Tensor, "rows written"]
    ) -> Float[Tensor, "rows written+1 vocabulary"]:
        """Logits of the tokens after each state, given those already written: 1 to ``written + 1`` ahead.

        Raises:
            ValueError: ``written`` holds ``ahead`` tokens or more.
        """
        if written.shape[1] >= self.ahead:
            raise ValueError(f"written must hold fewer than ahead {self.ahead} tokens, got {written.shape[1]}")
        first = self.start.expand(len(states), 1, -1)
        x = torch.cat([first, self.encoder.embedding(written)], dim=1) if written.shape[1] else first
        for block, context in zip(self.decoder, self._contexts(states), strict=True):
            x = block(x, self.table[:, : x.shape[1]].to(x.dtype), causal=True, context=context)
        return self.encoder.head(self.norm(x))  # type: ignore[no-any-return]

    def _contexts(self, states: Float[Tensor, "rows dim"]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the pseudo-sequence, for each block of the decoder."""
        sequence = self.expand(states).unflatten(-1, (self.pseudo, -1))
        return [block.cross.keys_values(sequence) for block in self.decoder]  # type: ignore[operator, union-attr]

    def _draft(
        self,
        states: Float[Tensor, "rows dim"],
        count: int,
        temperature: float,
        generator: torch.Generator | None,
        first: Int[Tensor, " rows"] | None = None,
    ) -> tuple[Int[Tensor, "rows count"], Float[Tensor, "rows count vocabulary"]]:
        """``count`` tokens after each state, beginning with ``first`` if given, and the laws they were drawn from."""
        contexts = self._contexts(states)
        attention = self.decoder[0].attention
        cache = Cache(len(self.decoder), len(states), attention.kv_heads, count, attention.head_dim, states)  # type: ignore[union-attr, arg-type]
        x, tokens, laws = self.start.expand(len(states), 1, -1).to(states.dtype), [], []
        for place in range(count):
            table = self.table[:, place : place + 1].to(x.dtype)
            for number, (block, context) in enumerate(zip(self.decoder, contexts, strict=True)):
                x = block(x, table, cache=(cache, number), context=context)
            cache.length += 1
            laws.append(law(self.encoder.head(self.norm(x))[:, 0], temperature))
            given = first if place == 0 else None
            tokens.append(torch.multinomial(laws[-1], 1, generator=generator)[:, 0] if given is None else given)
            x = self.encoder.embedding(tokens[-1])[:, None]
        return torch.stack(tokens, dim=1), torch.stack(laws, dim=1)

    @torch.no_grad()
    def generate(
        self,
        prompt: Int[Tensor, "batch tokens"],
        count: int,
        *,
        draft: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch tokens+count"]:
        """``count`` more tokens, ``draft`` of them after each pass of the encoder; ``temperature`` 0 takes the likeliest.

        With ``draft`` 1 each token is drawn as a GPT's is. More are the decoder's own continuation, which the encoder
        reads only afterwards: fewer passes, another distribution. See :meth:`speculate` for the same distribution.

        Raises:
            ValueError: an empty prompt, tokens outside the vocabulary, more tokens than ``longest``, ``count`` below 1,
                ``draft`` below 1 or above ``ahead``, or a negative temperature.
        """
        self._check(prompt, count, draft, temperature)
        cache = self.encoder.cache(len(prompt), prompt.shape[1] + count)
        tokens, newest = [prompt], prompt
        while count > 0:
            state = self.encoder.hidden(newest, cache=cache)[:, -1]
            newest, _ = self._draft(state, min(draft, count), temperature, generator)
            tokens.append(newest)
            count -= newest.shape[1]
        return torch.cat(tokens, dim=1)

    @torch.no_grad()
    def speculate(
        self,
        prompt: Int[Tensor, "1 tokens"],
        count: int,
        *,
        draft: int | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Speculation:
        """As :meth:`generate` with ``draft`` 1, with the same distribution, in fewer passes of the encoder.

        The decoder drafts ``draft`` tokens (``ahead`` by default), one pass of the encoder reads them all, and each is
        kept or not by the rule of speculative sampling (arXiv 2211.17192, algorithm 1). The first of a draft is exact
        without a check, since it is the next token's own law that it was drawn from; and a token drawn in place of one
        that was turned down begins the next draft, so that no pass is spent on it alone.

        Raises:
            ValueError: as :meth:`generate`, or a prompt of more than one row.
        """
        draft = self.ahead if draft is None else draft
        self._check(prompt, count, draft, temperature)
        if len(prompt) != 1:
            raise ValueError(f"prompt must be one row, whose drafts end where its own tokens say, got {len(prompt)}")
        cache = self.encoder.cache(1, prompt.shape[1] + count)
        state = self.encoder.hidden(prompt, cache=cache)[:, -1]
        tokens, first, passes = [prompt], None, 0
        while count > 0:
            drafted, guesses = self._draft(state, min(draft, count), temperature, generator, first)
            before = cache.length
            states = self.encoder.hidden(drafted, cache=cache)
            truths = law(self.decode(states[0], drafted.new_empty(drafted.shape[1], 0))[:, 0], temperature)
            kept, first = verified(drafted[0, 1:], guesses[0, 1:], truths[:-1], generator)
            kept, passes = kept + 1, passes + 1
            # The tokens turned down are forgotten: what stands behind `length` is written over.
            cache.length, state = before + kept, states[:, kept - 1]
            tokens.append(drafted[:, :kept])
            count -= kept
        return Speculation(torch.cat(tokens, dim=1), passes)

    def _check(self, prompt: Tensor, count: int, draft: int, temperature: float) -> None:
        check_tokens(prompt, self.encoder.vocabulary, "prompt")
        longest = self.encoder.longest
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if prompt.shape[1] + count > longest:
            raise ValueError(f"prompt and count must be at most longest {longest}, got {prompt.shape[1]} + {count}")
        if not 1 <= draft <= self.ahead:
            raise ValueError(f"draft must be from 1 to ahead {self.ahead}, got {draft}")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")


def law(logits: Float[Tensor, "*batch vocabulary"], temperature: float) -> Float[Tensor, "*batch vocabulary"]:
    """Probabilities of tokens at a temperature; at 0 the likeliest has all of it."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits.float() / temperature).softmax(-1)


def verified(
    drafted: Int[Tensor, " draft"],
    guesses: Float[Tensor, "draft vocabulary"],
    truths: Float[Tensor, "draft vocabulary"],
    generator: torch.Generator | None = None,
) -> tuple[int, Int[Tensor, "1"] | None]:
    """How many drafted tokens are kept, and the token in place of the next one (None if all are).

    A token drawn from ``guesses`` q is kept with probability min(1, p / q), where ``truths`` is p; the first that is not
    is drawn anew from what p has more than q (arXiv 2211.17192, algorithm 1). What results has the law p.
    """
    chosen = drafted[:, None]
    q, p = guesses.gather(1, chosen)[:, 0], truths.gather(1, chosen)[:, 0]
    chance = torch.rand(len(drafted), generator=generator, device=drafted.device)
    kept = int((chance * q < p).long().cumprod(0).sum())
    if kept == len(drafted):
        return kept, None
    rest = (truths[kept] - guesses[kept]).clamp(min=0)
    rest = rest if float(rest.sum()) > 0 else truths[kept]  # rounding may leave nothing where p and q are the same
    return kept, torch.multinomial(rest, 1, generator=generator)


def sampled_positions(
    batch: int, length: int, count: int, device: str | torch.device = "cpu"
) -> Int[Tensor, "batch count"]:
    """``count`` different places out of ``length`` for each row, by torch's own generator."""
    if not 1 <= count <= length:
        raise ValueError(f"count must be from 1 to length {length}, got {count}")
    return torch.rand(batch, length, device=device).topk(count, dim=1).indices


def future_loss(
    model: FutureTokenPredictor,
    tokens: Int[Tensor, "batch tokens"],
    positions: Int[Tensor, "batch positions"],
    *,
    gamma: float = 0.8,
) -> Float[Tensor, ""]:
    """Mean cross entropy, in nats, of the tokens after some places, a token k ahead weighted by gamma^(k - 1).

    Every position of every row is a row of the decoder, so few positions bound the memory: the decoder works on
    ``batch * positions * ahead`` tokens. Behind the last token nothing is asked.

    Raises:
        ValueError: ``gamma`` outside (0, 1], or positions from which no token follows.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be above 0 and at most 1, got {gamma}")
    if int(positions.min()) < 0 or int(positions.max()) > tokens.shape[1] - 2:
        raise ValueError(
            f"positions must be from 0 to {tokens.shape[1] - 2}, got {positions.min()} to {positions.max()}"
        )
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    states = model.encoder.hidden(tokens[:, :-1])[rows, positions].flatten(0, 1)
    distance = torch.arange(model.ahead, device=tokens.device)
    places = positions[..., None] + 1 + distance
    targets = tokens[rows[..., None], places.clamp(max=tokens.shape[1] - 1)].flatten(0, 1)
    weights = (gamma**distance * (places < tokens.shape[1])).flatten(0, 1)
    logits = model.decode(states, targets[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(weights)
    return (losses * weights).sum() / weights.sum()
