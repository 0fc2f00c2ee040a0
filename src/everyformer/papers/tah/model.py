"""Think-at-Hard (arXiv 2511.08577): a causal language model that reads a token a second time where a decider finds it hard.

The first pass is the language model as it was. A decider reads its hidden states and logits, token by token. Where it
says so, the token passes again, as the mean of the embeddings of its likeliest next tokens, with low-rank weights added
to every linear layer; the logits of all passes of a token are summed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from everyformer.papers.tah.attention import NAME, Memory, Pass
from everyformer.papers.tah.config import BASES, TaHConfig
from everyformer.papers.tah.modules import Decider, Switch, add_low_rank, mean_embedding
from everyformer.parts.language import check_tokens, draw


@dataclasses.dataclass
class TaHOutput(ModelOutput):
    """What a forward pass gives.

    Attributes:
        loss: cross entropy of the next tokens, in nats, where labels were given.
        logits: (batch, tokens, vocabulary), summed over a token's passes.
        depths: (batch, tokens), passes of each token.
        scores: (batch, tokens, max_depth - 1), the decider's logits after each pass but the last; 0 where not asked.
        memory: keys and values, to go on from.
    """

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "batch tokens vocabulary"] | None = None
    depths: Int[Tensor, "batch tokens"] | None = None
    scores: Float[Tensor, "batch tokens questions"] | None = None
    memory: Memory | None = None


class TaHForCausalLM(PreTrainedModel):
    """A language model of transformers with a decider and low-rank weights for further passes; see :func:`wrap`.

    ``save_pretrained``, ``from_pretrained`` and ``AutoModelForCausalLM`` work as for any model of transformers.
    """

    config_class = TaHConfig
    base_model_prefix = "base"
    _supports_sdpa = True
    _no_split_modules = ["Qwen3DecoderLayer", "LlamaDecoderLayer"]  # noqa: RUF012 (transformers declares it so)

    def __init__(self, config: TaHConfig, base: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.base: Any = AutoModelForCausalLM.from_config(config.base_config) if base is None else base
        self.base.set_attn_implementation(NAME)
        self.deeper = Switch()
        add_low_rank(self.base.model.layers, self.deeper, config.rank, config.alpha, config.lora_dropout)
        self.decider = Decider(
            self.base.config.hidden_size, config.decider_layers, config.top_tokens, config.decider_widths,
            config.decider_dropout,
        ).to(self.base.lm_head.weight)  # fmt: skip
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: modules give themselves their first weights."""

    @property
    def threshold(self) -> float:
        """The decider's probability above which a token passes again."""
        return float(self.config.threshold)

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"threshold must be from 0 to 1, got {value}")
        self.config.threshold = value

    def get_input_embeddings(self) -> nn.Module:
        """The base model's."""
        return self.base.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """The base model's."""
        return self.base.get_output_embeddings()  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch all_tokens"] | None = None,
        labels: Int[Tensor, "batch tokens"] | None = None,
        *,
        depths: Int[Tensor, "batch tokens"] | int | None = None,
        memory: Memory | None = None,
        return_scores: bool = False,
    ) -> TaHOutput:
        """Logits of the next tokens, one parallel pass for each depth.

        Args:
            attention_mask: 0 for padding, on either side.
            labels: as in transformers, the tokens themselves with -100 where no loss is taken.
            depths: how many passes each token takes, or all of them; the decider's choice by default.
            memory: of an earlier call, whose tokens these follow; it is extended in place.
            return_scores: ask the decider even where ``depths`` decides.

        Raises:
            ValueError: more tokens than the base model has positions for, or depths or a mask that do not fit.
        """
        config, (batch, count) = self.config, input_ids.shape
        memory = Memory(config.max_depth) if memory is None else memory
        limit = self.base.config.max_position_embeddings
        if memory.length + count > limit:
            raise ValueError(f"input_ids must end within {limit} positions, got {memory.length} + {count} tokens")
        if attention_mask is not None and (len(attention_mask) != batch or attention_mask.shape[1] < count):
            raise ValueError(
                f"attention_mask must be of {batch} rows and at least {count} tokens, got {tuple(attention_mask.shape)}"
            )
        chosen = self._chosen(depths, input_ids)
        before = memory.depths[0].real
        whole = attention_mask is None and (before is None or bool(before.all()))
        real = input_ids.new_ones(batch, count).bool() if attention_mask is None else attention_mask[:, -count:].bool()
        positions = memory.positions(real)

        taken = torch.ones_like(input_ids)
        scores: list[Tensor] = []
        order = torch.arange(count, device=input_ids.device).expand(batch, -1)  # of the packed tokens
        packed, x = real, self.get_input_embeddings()(input_ids)
        logits = x.new_zeros(batch, count, 0)
        for depth in range(config.max_depth):
            last = depth == config.max_depth - 1
            asked = not last and (chosen is None or return_scores)
            at = positions.gather(1, order)
            # Without padding, the first pass needs no mask for a whole sequence or for a single token.
            plain = depth == 0 and whole and (count == 1 or memory.length == 0)
            memory.depths[depth].add(at, packed)
            out = self._pass(x, at, Pass(memory, depth, None if plain else memory.mask(depth, at)), asked)
            rows, columns = packed.nonzero(as_tuple=True)
            places = rows, order[rows, columns]
            logits = out.logits if depth == 0 else logits.index_put(places, out.logits[packed], accumulate=True)
            if last:
                break

            again = torch.zeros_like(real)
            if chosen is not None:
                again[places] = (chosen > depth + 1)[places]
            if asked:
                score = self.decider(out.hidden_states, logits.gather(1, _as_wide(order, logits)))
                scores.append(score.new_zeros(batch, count).index_put(places, score[packed]))
                if chosen is None:
                    again[places] = score[packed].sigmoid() > self.threshold
            if not again.any():
                break
            taken += again
            order, packed = _pack(again)
            likeliest = logits.gather(1, _as_wide(order, logits))
            x = mean_embedding(likeliest, self.get_input_embeddings().weight, config.top_tokens)  # type: ignore[arg-type]

        found = torch.stack(scores, dim=-1) if scores else None
        if found is not None:
            found = nn.functional.pad(found, (0, config.max_depth - 1 - found.shape[-1]))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return TaHOutput(loss=loss, logits=logits, depths=taken, scores=found, memory=memory)

    def _pass(self, x: Tensor, positions: Tensor, duo: Pass, with_hidden_states: bool) -> Any:
        """The base model's output, with low-rank weights in all but the first pass."""
        self.deeper.on = duo.depth > 0
        try:
            return self.base(
                inputs_embeds=x, position_ids=positions, use_cache=False, duo=duo, output_hidden_states=with_hidden_states
            )  # fmt: skip
        finally:
            self.deeper.on = False

    def _chosen(self, depths: Tensor | int | None, input_ids: Tensor) -> Tensor | None:
        if depths is None:
            return None
        low, high = (depths, depths) if isinstance(depths, int) else (int(depths.min()), int(depths.max()))
        if low < 1 or high > self.config.max_depth:
            raise ValueError(f"depths must be from 1 to max_depth {self.config.max_depth}, got {low} to {high}")
        if isinstance(depths, int):
            return torch.full_like(input_ids, depths)
        if depths.shape != input_ids.shape:
            raise ValueError(
                f"depths must be shaped like input_ids {tuple(input_ids.shape)}, got {tuple(depths.shape)}"
            )
        return depths

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        max_new_tokens: int,
        depths: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        eos_token_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch all_tokens"]:
        """Prompt and what follows it, with keys and values kept for each depth; padding of prompts stands left.

        Args:
            depths: passes for every token; the decider's choice by default.
            temperature, top_k: of the draw; by default the likeliest token is taken.
            eos_token_id: ends a row, which is filled up with it until all have ended.

        Raises:
            ValueError: an empty prompt, a token outside the vocabulary, or more tokens than there are positions.
        """
        check_tokens(input_ids, self.base.config.vocab_size, "input_ids")
        limit = self.base.config.max_position_embeddings
        if input_ids.shape[1] + max_new_tokens > limit:
            raise ValueError(
                f"max_new_tokens must end within {limit} positions, got {input_ids.shape[1]} + {max_new_tokens}"
            )
        memory = Memory(self.config.max_depth)
        tokens, newest = [input_ids], input_ids
        ended = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        for _ in range(max_new_tokens):
            out = self(newest, attention_mask, depths=depths, memory=memory)
            newest = draw(out.logits[:, -1], temperature=temperature, top_k=top_k, generator=generator)[:, None]
            if eos_token_id is not None:
                newest = newest.masked_fill(ended[:, None], eos_token_id)
                ended |= newest[:, 0] == eos_token_id
            tokens.append(newest)
            if bool(ended.all()):
                break
            attention_mask = None if attention_mask is None else torch.ones_like(newest)
        return torch.cat(tokens, dim=1)


def _pack(again: Bool[Tensor, "batch tokens"]) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """Columns of the chosen tokens, left-aligned in order, and which of them are real: rows have fewer than the most."""
    order = (~again).long().argsort(dim=1, stable=True)[:, : int(again.sum(1).max())]
    return order, again.gather(1, order)


def _as_wide(order: Tensor, like: Tensor) -> Tensor:
    return order[..., None].expand(-1, -1, like.shape[-1])


def wrap(model: PreTrainedModel | str | Path, **options: Any) -> TaHForCausalLM:
    """A language model of transformers as a TaH model; its weights are shared, and its linear layers changed in place.

    Args:
        model: a Qwen3ForCausalLM or LlamaForCausalLM, or what ``AutoModelForCausalLM`` loads one from.
        options: of :class:`TaHConfig`.

    Raises:
        TypeError: another kind of model.
        ValueError: options that do not fit, or a model that has been wrapped before.
    """
    if isinstance(model, str | Path):
        model = AutoModelForCausalLM.from_pretrained(model)
    if not isinstance(model, PreTrainedModel) or isinstance(model, TaHForCausalLM) or not hasattr(model, "lm_head"):
        raise TypeError(f"model must be a causal language model of {' or '.join(BASES)}, got {type(model).__name__}")
    wrapped = TaHForCausalLM(TaHConfig(model.config, **options), model)
    return wrapped.train(model.training)


AutoModelForCausalLM.register(TaHConfig, TaHForCausalLM)
