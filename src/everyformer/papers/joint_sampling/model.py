"""Approximate joint sampling (arXiv 2509.22738): a masked diffusion language model and the one layer added to it.

A full pass of the model gives the distribution of every masked token alone. :class:`JointSampler` turns the states of
that pass into states that know the tokens placed since, at the price of one layer; the model's own norm and head follow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from everyformer.parts import checkpoints
from everyformer.parts.language import Block, LanguageModel, hidden_width, rotary

States = Float[Tensor, "batch tokens dim"]
Tokens = Int[Tensor, "batch tokens"]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a sampler must have in common with its base: widths and positions of a layer, and the vocabulary."""

    vocabulary: int
    dim: int
    heads: int
    kv_heads: int
    hidden: int
    longest: int
    bias: bool
    theta: float
    eps: float


class MaskedLM(Protocol):
    """What sampling asks of a base; row i of ``states`` is the one that predicts the token at position i."""

    mask_token: int
    sizes: Sizes

    def states(self, tokens: Tokens) -> States:
        """What comes out of the last layer, before the final norm: a full pass."""

    def logits(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocabulary"]:
        """Final norm and head."""

    def embed(self, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows dim"]:
        """The token embedding."""

    def last_block(self) -> Block:
        """The last layer, which a sampler starts from."""

    def state_dict(self) -> dict[str, Any]:
        """All weights."""


class MaskedDiffusionLM(nn.Module):
    """A transformer that sees both sides and predicts the tokens under ``mask_token``.

    Args:
        vocabulary, dim, depth, heads, hidden, kv_heads, longest, tied, bias, theta, eps: as in ``LanguageModel``; the
            vocabulary includes the mask.
        mask_token: id of the mask.
        shifted: row i - 1 of the network predicts position i, as in Dream; row 0 keeps its own.

    Raises:
        ValueError: ``mask_token`` outside the vocabulary, sizes that do not divide, tokens beyond ``longest``.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        mask_token: int,
        hidden: int | None = None,
        kv_heads: int | None = None,
        longest: int = 2048,
        shifted: bool = False,
        tied: bool = True,
        bias: bool = False,
        theta: float = 10_000.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_mask_token(mask_token, vocabulary)
        self.mask_token, self.shifted = mask_token, shifted
        hidden, kv_heads = hidden or hidden_width(dim), kv_heads or heads
        self.sizes = Sizes(vocabulary, dim, heads, kv_heads, hidden, longest, bias, theta, eps)
        self.network = LanguageModel(
            vocabulary=vocabulary, dim=dim, depth=depth, heads=heads, hidden=hidden, kv_heads=kv_heads,
            longest=longest, causal=False, tied=tied, bias=bias, theta=theta, eps=eps,
        )  # fmt: skip

    def states(self, tokens: Tokens) -> States:
        """What comes out of the last layer, before the final norm; row i predicts position i."""
        x = self.network.states(tokens)
        return aligned(x) if self.shifted else x

    def logits(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocabulary"]:
        """Final norm and head."""
        return self.network.head(self.network.norm(states))  # type: ignore[no-any-return]

    def embed(self, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows dim"]:
        """The token embedding."""
        return self.network.embedding(tokens)  # type: ignore[no-any-return]

    def last_block(self) -> Block:
        """The last layer, which a sampler starts from."""
        return self.network.blocks[-1]  # type: ignore[return-value]

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits of the token at each position."""
        return self.logits(self.states(tokens))


def aligned(x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
    """Rows of a shifted network, moved to the positions that they predict."""
    return torch.cat([x[:, :1], x[:, :-1]], dim=1)


def masked_loss(model: MaskedDiffusionLM, tokens: Tokens, chances: Float[Tensor, "batch 1+tokens"]) -> Tensor:
    """Mean cross entropy of masked tokens; the first of ``chances`` (in [0, 1)) is the sequence's masking rate.

    At least one token of each sequence is masked, the one of the lowest chance.
    """
    rate, chance = chances[:, :1], chances[:, 1:]
    masked = (chance < rate) | (chance == chance.amin(1, keepdim=True))
    logits = model(tokens.masked_fill(masked, model.mask_token))
    return F.cross_entropy(logits[masked].float(), tokens[masked])


@dataclasses.dataclass
class Memory:
    """What the sampler keeps between two full passes: states, its inputs, and their keys and values."""

    states: States
    inputs: States
    keys: Float[Tensor, "batch kv_heads tokens head_dim"]
    values: Float[Tensor, "batch kv_heads tokens head_dim"]


class JointSampler(nn.Module):
    """The added layer g: states of a full pass, and the tokens placed by now, to states that know those tokens.

    ``g(h, x) = h + W_out block(W_in [norm(h); norm(e(x))])``, e the base's token embedding. ``W_out`` starts at zero:
    an untrained sampler gives the base's marginals. Filled positions differ from masked ones by their embedding.

    Args:
        sizes: those of the base; the block is of the base's own kind.

    Raises:
        ValueError: states and embeddings of other shapes.
    """

    table: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        dim = sizes.dim
        self.state_norm = nn.RMSNorm(dim, sizes.eps)
        self.token_norm = nn.RMSNorm(dim, sizes.eps)
        self.enter = nn.Linear(2 * dim, dim, bias=False)
        self.block = Block(
            dim, sizes.heads, sizes.hidden, kv_heads=sizes.kv_heads, bias=sizes.bias, eps=sizes.eps
        )  # fmt: skip
        self.leave = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            self.enter.weight.copy_(torch.eye(dim).repeat(1, 2))  # the block first reads states and tokens as a sum
            self.leave.weight.zero_()
        self.register_buffer(
            "table", rotary(torch.arange(sizes.longest), dim // sizes.heads, sizes.theta), persistent=False
        )

    @classmethod
    def from_base(cls, base: MaskedLM) -> JointSampler:
        """A sampler that starts as marginal sampling, its block as the base's last layer.

        Raises:
            ValueError: a causal base.
            TypeError: a base that is no masked language model of this package.
        """
        check_base(base)
        last = base.last_block()
        sampler = cls(base.sizes)
        sampler.block.load_state_dict(last.state_dict())
        return sampler.to(last.mlp_norm.weight)

    def forward(self, states: States, embedded: States) -> States:
        """New states of every position, from those of the full pass and the embeddings of the tokens placed by now."""
        if states.shape != embedded.shape or states.shape[-1] != self.sizes.dim:
            raise ValueError(
                f"states and embedded must be of one shape (batch, tokens, {self.sizes.dim}), "
                f"got {tuple(states.shape)} and {tuple(embedded.shape)}"
            )
        inputs = self._inputs(states, embedded)
        table = self.table[:, : states.shape[1]].to(inputs.dtype)
        return states + self.leave(self.block(inputs, table))  # type: ignore[no-any-return]

    def begin(self, states: States, embedded: States) -> Memory:
        """After a full pass: inputs of all positions, their keys and values."""
        inputs = self._inputs(states, embedded)
        rows = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
        _, keys, values = self._project(inputs, rows)
        return Memory(states, inputs, keys, values)

    def update(self, memory: Memory, rows: Int[Tensor, "batch rows"], embedded: States) -> None:
        """Renew what depends on tokens placed at ``rows``; exact, since there is only one layer."""
        inputs = self._inputs(taken(memory.states, rows), embedded)
        _, keys, values = self._project(inputs, rows)
        memory.inputs.scatter_(1, rows[..., None].expand_as(inputs), inputs)
        place = rows[:, None, :, None].expand_as(keys)
        memory.keys.scatter_(2, place, keys)
        memory.values.scatter_(2, place, values)

    def query(self, memory: Memory, rows: Int[Tensor, "batch rows"]) -> Float[Tensor, "batch rows dim"]:
        """New states of some positions only: what :meth:`forward` gives there."""
        x = taken(memory.inputs, rows)
        query, _, _ = self._project(x, rows)
        attention, block = self.block.attention, self.block
        mixed = F.scaled_dot_product_attention(
            query, memory.keys, memory.values, enable_gqa=attention.kv_heads != attention.heads
        )
        x = x + attention.out(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.mlp_norm(x))
        return taken(memory.states, rows) + self.leave(x)  # type: ignore[no-any-return]

    def _inputs(self, states: States, embedded: States) -> States:
        return self.enter(torch.cat([self.state_norm(states), self.token_norm(embedded)], dim=-1))  # type: ignore[no-any-return]

    def _project(self, x: States, rows: Int[Tensor, "batch rows"]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value at rows, turned by their positions."""
        table = self.table[:, rows][:, :, None].to(x.dtype)
        return self.block.attention.project(self.block.attention_norm(x), table)  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | Path, base: MaskedLM, base_name: str) -> None:
        """Write the sampler alone: its weights, and in ``sampler.json`` its sizes, the base's name and its hash."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "sampler.safetensors"
        )
        card = {"base": base_name, "hash": fingerprint(base), "sizes": dataclasses.asdict(self.sizes)}
        (folder / "sampler.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, base: MaskedLM) -> JointSampler:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            ValueError: another base than the one it was saved with, by sizes or by hash; files or keys that are missing.
        """
        check_base(base)
        file = Path(folder) / "sampler.json"
        if not file.is_file():
            raise ValueError(f"folder must hold a saved sampler, got {folder} without sampler.json")
        card = json.loads(file.read_text(encoding="utf-8"))
        sampler = cls(Sizes(**card["sizes"]))
        check_fit(sampler, base)
        if (found := fingerprint(base)) != card["hash"]:
            raise ValueError(
                f"base must be {card['base']} with the weights of hash {card['hash'][:12]}, got hash {found[:12]}"
            )
        state = load_file(Path(folder) / "sampler.safetensors")
        checkpoints.check(state, {name: tensor.shape for name, tensor in sampler.state_dict().items()})
        sampler.load_state_dict(state)
        return sampler.to(base.last_block().mlp_norm.weight)


def taken(x: Float[Tensor, "batch tokens dim"], rows: Int[Tensor, "batch rows"]) -> Float[Tensor, "batch rows dim"]:
    """The rows of each sequence."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def fingerprint(base: MaskedLM) -> str:
    """SHA-256 over names and bytes of all weights."""
    contents = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        contents.update(name.encode())
        contents.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return contents.hexdigest()


def check_mask_token(mask_token: int | None, vocabulary: int) -> None:
    """Raise a ValueError where there is no mask token, or it is outside the vocabulary."""
    if mask_token is None:
        raise ValueError("mask_token must be given: the tokenizer and the model's configuration name none")
    if not 0 <= mask_token < vocabulary:
        raise ValueError(f"mask_token must be from 0 to {vocabulary - 1}, got {mask_token}")


def check_base(base: object) -> None:
    """Raise where ``base`` is no masked language model of this package."""
    if getattr(base, "causal", False):
        raise ValueError(f"base must see both sides, got a causal {type(base).__name__}")
    if not all(hasattr(base, name) for name in ("states", "logits", "embed", "last_block", "sizes", "mask_token")):
        raise TypeError(f"base must be a MaskedDiffusionLM or TransformersMaskedLM, got {type(base).__name__}")


def check_fit(sampler: JointSampler, base: MaskedLM) -> None:
    """Raise a ValueError that names the first size in which sampler and base differ."""
    for name, ours in dataclasses.asdict(sampler.sizes).items():
        if ours != (theirs := getattr(base.sizes, name)):
            raise ValueError(f"sampler must fit the base: its {name} is {ours}, the base's {theirs}")
