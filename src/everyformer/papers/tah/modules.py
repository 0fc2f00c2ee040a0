"""The parts of Think-at-Hard (arXiv 2511.08577, section 3): input of a further pass, low-rank weights, decider."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def mean_embedding(
    logits: Float[Tensor, "*batch vocabulary"], embedding: Float[Tensor, "vocabulary dim"], top_k: int
) -> Float[Tensor, "*batch dim"]:
    """The embeddings of the ``top_k`` likeliest tokens, averaged by their probabilities among themselves."""
    values, tokens = logits.topk(top_k, dim=-1)
    return (values.softmax(-1)[..., None, :] @ embedding[tokens]).squeeze(-2).to(embedding.dtype)


class Switch:
    """Whether the low-rank weights count, for all layers of a model at once."""

    on: bool = False


class LowRankLinear(nn.Linear):
    """A linear layer W whose further passes compute with W + alpha / rank · B A (LoRA, arXiv 2106.09685)."""

    lora_a: Float[Tensor, "rank inputs"]
    lora_b: Float[Tensor, "outputs rank"]
    switch: Switch
    scale: float
    dropout: float

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """As in torch while the switch is off, to the bit."""
        out = super().forward(x)
        if self.switch.on:
            x = nn.functional.dropout(x, self.dropout, self.training)
            out = out + nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b) * self.scale
        return out


def add_low_rank(model: nn.Module, switch: Switch, rank: int, alpha: float, dropout: float) -> None:
    """Give every linear layer low-rank weights, in place; B begins at 0, so that they change nothing.

    Raises:
        ValueError: a layer that has them already.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, LowRankLinear):
            raise ValueError(f"model must not have been wrapped before, got low-rank weights in {name}")
        if type(layer) is nn.Linear:
            layer.__class__ = LowRankLinear
            vars(layer).update(switch=switch, scale=alpha / rank, dropout=dropout)
            layer.lora_a = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))  # type: ignore[assignment]
            layer.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))  # type: ignore[assignment]
            nn.init.kaiming_uniform_(layer.lora_a, a=math.sqrt(5))


class DeciderBlock(nn.Module):
    """x, projected where the width changes, + MLP(norm(x))."""

    def __init__(self, inputs: int, outputs: int, dropout: float, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.up = nn.Linear(inputs, expansion * inputs)
        self.down = nn.Linear(expansion * inputs, outputs)
        self.skip = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        hidden = self.dropout(nn.functional.gelu(self.up(self.norm(x))))
        return self.skip(x) + self.dropout(self.down(hidden))  # type: ignore[no-any-return]


class Decider(nn.Module):
    """Hidden states of some layers and the largest logits of a token to one logit: whether it is hard.

    Args:
        dim: width of the language model.
        layers: numbers of the hidden states that are read, 0 for the embeddings.
        top_k: logits that are read, the largest first.
        widths: of the blocks.
    """

    def __init__(self, dim: int, layers: Sequence[int], top_k: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.layers, self.top_k = list(layers), top_k
        self.read_logits = nn.Linear(top_k, dim)
        self.read = nn.Linear((len(layers) + 1) * dim, widths[0])
        self.enter = nn.Linear(widths[0], widths[0])
        ends = [*widths[1:], widths[-1]]
        self.blocks = nn.ModuleList(DeciderBlock(*pair, dropout) for pair in zip(widths, ends, strict=True))
        self.norm = nn.LayerNorm(widths[-1])
        self.out = nn.Linear(widths[-1], 1)
        for layer in [self.enter, self.out, *(part for block in self.blocks for part in block.modules())]:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, hidden: Sequence[Float[Tensor, "*batch dim"]], logits: Float[Tensor, "*batch vocabulary"]
    ) -> Float[Tensor, "*batch"]:
        """``hidden``: embeddings and every layer's output, the last one normalised, as transformers returns them."""
        largest = logits.topk(self.top_k, dim=-1).values
        x = torch.cat([*(hidden[layer] for layer in self.layers), self.read_logits(largest)], dim=-1)
        x = self.enter(self.read(x))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x)).squeeze(-1)  # type: ignore[no-any-return]
