"""PASTA: one transformer over the components of states and actions, for several robots (arXiv 2307.10936)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from everyformer.catalog import lookup
from everyformer.files import write_atomic
from everyformer.papers.pasta.objectives import OBJECTIVES
from everyformer.papers.pasta.tokenizer import ComponentTokenizer, mu_law_inverse
from everyformer.parts.checkpoints import check
from everyformer.parts.language import Cache

History = tuple[Float[Tensor, "batch steps sensors"], Float[Tensor, "batch steps actuators"]]


@dataclasses.dataclass(frozen=True)
class Size:
    """Layers, width, heads, and how many component tokens a window holds; the paper stays below 10 M parameters."""

    layers: int
    dim: int
    heads: int
    tokens: int


SIZES = {"base": Size(6, 256, 8, 512), "cpu": Size(3, 96, 4, 160)}


class Block(nn.Module):
    """A pre-norm transformer block with a projection of its own for whatever an adapter may tune."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], causal: bool, cache: tuple[Cache, int] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """With a cache (and the number of this layer), ``x`` are the tokens after those in it."""
        normed = self.attention_norm(x)
        query, key, value = (
            part(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mask, dropout = None, self.dropout if self.training else 0.0
        if cache is not None:
            before = cache[0].length
            key, value = cache[0].extended(cache[1], key, value)
            if before and causal and x.shape[1] > 1:
                mask = torch.ones(x.shape[1], key.shape[2], dtype=torch.bool, device=x.device).tril(before)
        in_order = causal and query.shape[2] == key.shape[2]
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=in_order)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        hidden = self.down(F.gelu(self.up(self.mlp_norm(x))))
        return x + F.dropout(hidden, self.dropout, self.training)


class Pasta(nn.Module):
    """A transformer of trajectories. With a component objective every number is a token; else every state and action is.

    Args:
        tokenizer: a fitted tokenizer, or one for each domain by its name; they share their bins.
        size: a name of :data:`SIZES`, or a :class:`Size`.
        objective: a name of :data:`~everyformer.papers.pasta.objectives.OBJECTIVES`.
        value: how a component is embedded and predicted: as one of the tokenizer's bins (the paper's way), or as the
            number itself with a squared error. Models of whole states always do the latter.

    Raises:
        ValueError: an unknown name, no domain, tokenizers of different bins, or a window shorter than two steps.
    """

    def __init__(
        self,
        tokenizer: ComponentTokenizer | Mapping[str, ComponentTokenizer],
        *,
        size: str | Size = "base",
        objective: str = "c-gpt",
        value: Literal["discrete", "continuous"] = "discrete",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        named = {"": tokenizer} if isinstance(tokenizer, ComponentTokenizer) else dict(tokenizer)
        self.size: Size = lookup(size, SIZES, "size") if isinstance(size, str) else size
        self.objective = lookup(objective, OBJECTIVES, "objective")
        if not named or len({(one.bins, one.mu, one.limit) for one in named.values()}) != 1:
            raise ValueError(f"tokenizer must be one or more of equal bins, mu and limit, got {named}")
        if value not in ("discrete", "continuous"):
            raise ValueError(f"value must be 'discrete' or 'continuous', got {value!r}")
        self.domains, self.tokenizers = list(named), nn.ModuleList(named.values())
        self.by_component = self.objective.tokens == "component"
        self.discrete = self.by_component and value == "discrete"
        widest = max(one.components for one in named.values())
        self.context = self.size.tokens // widest
        if self.context < 2:
            raise ValueError(f"size must hold two steps of {widest} tokens, got {self.size.tokens} tokens")
        self.dropout, dim = dropout, self.size.dim
        self.component_code = nn.Embedding(widest if self.by_component else 2, dim)
        self.time_code, self.domain_code = nn.Embedding(self.context, dim), nn.Embedding(len(named), dim)
        self.mask = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(Block(dim, self.size.heads, dropout) for _ in range(self.size.layers))
        self.norm = nn.LayerNorm(dim)
        self.apply(_initialise)
        first = next(iter(named.values()))
        if self.discrete:
            # Bins that lie side by side start alike, on waves of many lengths; the same table reads the answer.
            self.bins = nn.Embedding(first.bins, dim)
            self.bias = nn.Parameter(torch.zeros(first.bins))
            with torch.no_grad():
                self.bins.weight.copy_(_waves(first.middle_of(torch.arange(first.bins)), dim))
            for code in (self.component_code, self.time_code, self.domain_code):  # to be heard beside the waves
                nn.init.normal_(code.weight, std=0.5)
        elif self.by_component:
            self.embedding, self.head = nn.Linear(1, dim), nn.Linear(dim, 1)
        else:
            sizes = [(one.sensors, one.actuators) for one in named.values()]
            self.embeddings = nn.ModuleList(nn.Linear(size, dim) for pair in sizes for size in pair)
            self.heads = nn.ModuleList(nn.Linear(dim, size) for pair in sizes for size in pair)

    def tokenizer_of(self, domain: str | None = None) -> tuple[int, ComponentTokenizer]:
        """Number and tokenizer of a domain, which may be left out where there is one only.

        Raises ``ValueError`` for a domain that the model does not know.
        """
        if domain is None and len(self.domains) == 1:
            domain = self.domains[0]
        if domain not in self.domains:
            raise ValueError(f"domain must be one of {', '.join(self.domains)}, got {domain!r}")
        index = self.domains.index(domain)
        return index, self.tokenizers[index]  # type: ignore[return-value]

    def slots(self, domain: str | None = None) -> tuple[int, int]:
        """How many tokens a state and an action are."""
        _, tokenizer = self.tokenizer_of(domain)
        return (tokenizer.sensors, tokenizer.actuators) if self.by_component else (1, 1)

    def forward(
        self,
        observations: Float[Tensor, "batch steps sensors"],
        actions: Float[Tensor, "batch steps actuators"],
        *,
        domain: str | None = None,
        hidden: Bool[Tensor, "batch steps slots"] | None = None,
        keep: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch kept dim"]:
        """The last layer's outputs for the tokens of a window, step after step.

        Args:
            hidden: tokens in whose place the model sees only that there is one.
            keep: numbers of the tokens that are there at all, in order; all unless given.

        Raises:
            ValueError: a window longer than the context, sizes that are not the domain's, or an unknown domain.
        """
        x = self.embed(observations, actions, domain=domain, hidden=hidden)
        return self.read(x if keep is None else x[:, keep])

    def read(
        self, x: Float[Tensor, "batch tokens dim"], cache: Cache | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The last layer's outputs for embedded tokens; with a cache, for those after what is in it."""
        for index, block in enumerate(self.blocks):
            x = block(x, self.objective.causal, None if cache is None else (cache, index))
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)  # type: ignore[no-any-return]

    def embed(
        self,
        observations: Float[Tensor, "batch steps sensors"],
        actions: Float[Tensor, "batch steps actuators"],
        *,
        domain: str | None = None,
        hidden: Bool[Tensor, "batch steps slots"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of a window: value, component, time and domain."""
        index, tokenizer = self.tokenizer_of(domain)
        steps = observations.shape[1]
        if steps > self.context:
            raise ValueError(f"observations must be a window of at most {self.context} steps, got {steps}")
        if self.by_component:
            x = self.components(tokenizer.values(observations, actions), tokenizer)
        else:
            state = self.embeddings[2 * index](tokenizer.standardised(observations))
            values = tokenizer.values(observations, actions)[..., tokenizer.sensors :]
            x = torch.stack([state, self.embeddings[2 * index + 1](values)], 2)
        if hidden is not None:
            if hidden.shape != x.shape[:3]:
                raise ValueError(f"hidden must be {tuple(x.shape[:3])}, got {tuple(hidden.shape)}")
            x = torch.where(hidden[..., None], self.mask, x)
        return (x + self.codes(domain)[:steps]).flatten(1, 2)  # type: ignore[no-any-return]

    def components(
        self, values: Float[Tensor, "*any slots"], tokenizer: ComponentTokenizer, first: int = 0
    ) -> Float[Tensor, "*any slots dim"]:
        """Embedded values of :meth:`ComponentTokenizer.values` from component ``first`` on, without codes."""
        if self.discrete:
            return self.bins(tokenizer.bin_of(values))  # type: ignore[no-any-return]
        return self.embedding(plain(values, tokenizer, first)[..., None])  # type: ignore[no-any-return]

    def codes(self, domain: str | None = None) -> Float[Tensor, "context slots dim"]:
        """What is added to a token for its step, its component and its domain."""
        index, _ = self.tokenizer_of(domain)
        component = self.component_code.weight[: sum(self.slots(domain))]
        return self.time_code.weight[:, None] + component + self.domain_code.weight[index]  # type: ignore[no-any-return]

    def logits(self, outputs: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any bins"]:
        """Scores of the bins."""
        return F.linear(outputs / math.sqrt(self.size.dim), self.bins.weight, self.bias)

    def expected(
        self, outputs: Float[Tensor, "batch steps slots dim"], domain: str | None = None, first: int = 0
    ) -> Float[Tensor, "batch steps slots"]:
        """What outputs at component tokens say, as means: standardised sensors, and actions scaled to [-1, 1].

        ``first`` is which component the first of ``slots`` speaks of.
        """
        _, tokenizer = self.tokenizer_of(domain)
        if not self.discrete:
            return self.head(outputs)[..., 0]  # type: ignore[no-any-return]
        chances = self.logits(outputs).float().softmax(-1)
        middles = tokenizer.middle_of(torch.arange(tokenizer.bins, device=chances.device))
        linear = mu_law_inverse(middles, tokenizer.mu, tokenizer.limit)
        sensed = _sensed(outputs.shape[-2], tokenizer, first, chances.device)
        return torch.where(sensed, chances @ linear, chances @ middles)

    def numbers(self, values: Float[Tensor, "*any components"], domain: str | None = None) -> Tensor:
        """Standardised sensors and scaled actions, which :meth:`ComponentTokenizer.values` has compressed."""
        return plain(values, self.tokenizer_of(domain)[1])

    def observation_features(
        self,
        observations: Float[Tensor, "batch sensors"],
        history: History | None = None,
        *,
        domain: str | None = None,
        missing: Sequence[int] = (),
    ) -> Float[Tensor, "batch dim"]:
        """The mean of the outputs at the tokens of the newest state.

        Args:
            history: the states and actions before, as many as the context holds beside the newest.
            missing: sensors that are lost, now and before. Component models are told so: those that learned with masks
                see masks, the others no token at all. Models of whole states see the sensor's mean.

        Raises:
            ValueError: a sensor out of range or all of them missing, a history that is too long, other sizes.
        """
        _, tokenizer = self.tokenizer_of(domain)
        lost = sorted(set(missing))
        if (lost and not 0 <= lost[0] <= lost[-1] < tokenizer.sensors) or len(lost) == tokenizer.sensors:
            raise ValueError(f"missing must be some of the sensors 0 to {tokenizer.sensors - 1}, got {list(missing)}")
        seen, acted = observations[:, None], observations.new_zeros(len(observations), 1, tokenizer.actuators)
        if history is not None:
            seen, acted = torch.cat([history[0], seen], 1), torch.cat([history[1], acted], 1)
        if lost:
            filled = seen.clone()
            filled[..., lost] = tokenizer.mean[lost]
            seen = filled
        state, action = self.slots(domain)
        total = seen.shape[1] * (state + action) - action  # the newest action is yet to come
        hidden, keep = None, list(range(total))
        if lost and self.by_component:
            if self.objective.causal:
                keep = [token for token in keep if token % (state + action) not in lost]
            else:
                hidden = torch.zeros(*seen.shape[:2], state + action, dtype=torch.bool, device=seen.device)
                hidden[..., lost] = True
        newest = sum(token >= total - state for token in keep)
        return self(seen, acted, domain=domain, hidden=hidden, keep=keep)[:, -newest:].mean(1)  # type: ignore[no-any-return]

    def fill(
        self,
        observations: Float[Tensor, "batch steps sensors"],
        actions: Float[Tensor, "batch steps actuators"],
        hidden: Bool[Tensor, "batch steps slots"],
        *,
        domain: str | None = None,
    ) -> tuple[Float[Tensor, "batch steps sensors"], Float[Tensor, "batch steps actuators"]]:
        """A window with what is hidden filled in by the model alone, without further training.

        Raises ``ValueError`` for a causal model, which cannot look at what comes after.
        """
        if self.objective.causal:
            raise ValueError(f"fill needs a model that learned with masks, got objective {self.objective.name!r}")
        index, tokenizer = self.tokenizer_of(domain)
        outputs = self(observations, actions, domain=domain, hidden=hidden).unflatten(1, hidden.shape[1:])
        if self.by_component:
            state, action = self.expected(outputs, domain).split([tokenizer.sensors, tokenizer.actuators], -1)
            unseen = hidden.split([tokenizer.sensors, tokenizer.actuators], -1)
        else:
            state, action = (self.heads[2 * index + part](outputs[:, :, part]) for part in (0, 1))
            unseen = hidden.split(1, -1)
        found = state * tokenizer.std + tokenizer.mean, action * tokenizer.reach + tokenizer.centre
        return torch.where(unseen[0], found[0], observations), torch.where(unseen[1], found[1], actions)

    def save(self, folder: str | Path) -> None:
        """Write the weights as safetensors, and beside them what the model is as JSON."""
        place = Path(folder)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_atomic(place / "model.safetensors", save(weights))
        domains = {
            name: {"sensors": one.sensors, "low": (one.centre - one.reach).tolist(),
                   "high": (one.centre + one.reach).tolist(), "bins": one.bins, "mu": one.mu, "limit": one.limit}
            for name, one in ((name, self.tokenizer_of(name)[1]) for name in self.domains)
        }  # fmt: skip
        card = {"size": dataclasses.asdict(self.size), "objective": self.objective.name, "dropout": self.dropout,
                "value": "discrete" if self.discrete else "continuous", "domains": domains}  # fmt: skip
        write_atomic(place / "pasta.json", json.dumps(card, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> Pasta:
        """The model that :meth:`save` wrote; raises ``ValueError`` that names a key which does not fit."""
        place = Path(folder)
        if not (place / "pasta.json").is_file():
            raise ValueError(f"folder must hold pasta.json and model.safetensors, got {place}")
        card = json.loads((place / "pasta.json").read_text(encoding="utf-8"))
        tokenizers = {}
        for name, one in card.pop("domains").items():
            sensors, low, high = one.pop("sensors"), torch.tensor(one.pop("low")), torch.tensor(one.pop("high"))
            tokenizers[name] = ComponentTokenizer(_Box(torch.zeros(sensors)), _Box(low, high), **one)
        model = cls(tokenizers, **{**card, "size": Size(**card["size"])})
        state = load_file(place / "model.safetensors")
        check(state, {name: tensor.shape for name, tensor in model.state_dict().items()})
        model.load_state_dict(state)
        return model.eval()


def plain(
    values: Float[Tensor, "*any slots"], tokenizer: ComponentTokenizer, first: int = 0
) -> Float[Tensor, "*any slots"]:
    """Standardised sensors and scaled actions of :meth:`ComponentTokenizer.values` from component ``first`` on."""
    sensed = _sensed(values.shape[-1], tokenizer, first, values.device)
    return torch.where(sensed, mu_law_inverse(values, tokenizer.mu, tokenizer.limit), values)


def _sensed(count: int, tokenizer: ComponentTokenizer, first: int, device: torch.device) -> Bool[Tensor, " count"]:
    """Which of ``count`` components from ``first`` on, through the steps, are of states."""
    return (first + torch.arange(count, device=device)) % tokenizer.components < tokenizer.sensors


class _Box:
    """As much of a Gymnasium ``Box`` as a tokenizer wants to know."""

    def __init__(self, low: Tensor, high: Tensor | None = None) -> None:
        self.low, self.high, self.shape = low, low if high is None else high, tuple(low.shape)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _waves(places: Float[Tensor, " bins"], dim: int) -> Float[Tensor, "bins dim"]:
    """Sines and cosines of places in [-1, 1], from one wave over all of it to one over a few bins."""
    lengths = torch.logspace(0, math.log2(len(places) / 8), dim - dim // 2, base=2)
    angles = math.pi * places[:, None] * lengths
    return torch.cat([angles.cos(), angles[:, : dim // 2].sin()], -1)
