"""The configuration of a Think-at-Hard model (arXiv 2511.08577), as transformers keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

BASES = ("qwen3", "llama")


class TaHConfig(PreTrainedConfig):
    """Sizes of a TaH model; the defaults are the paper's for Qwen3.

    Args:
        base_config: configuration of the language model, or its dictionary.
        max_depth: passes that a token goes through at most.
        top_tokens: likeliest tokens whose embeddings are averaged, and whose logits the decider reads.
        rank, alpha, lora_dropout: of the low-rank weights of later passes.
        threshold: a token passes again where the decider's probability is above it.
        decider_layers: hidden states that the decider reads, 0 for the embeddings; five spread out by default.
        decider_widths, decider_dropout: of the decider's blocks.

    Raises:
        ValueError: a base that is not Qwen3 or Llama or slides windows, fewer than two passes, a rank below 1, more
            likeliest tokens than the vocabulary has, a threshold or dropout outside [0, 1], or a layer that is not there.
    """

    model_type = "tah"
    sub_configs: ClassVar[dict[str, Any]] = {"base_config": AutoConfig}

    def __init__(
        self,
        base_config: PreTrainedConfig | dict[str, Any] | None = None,
        *,
        max_depth: int = 2,
        top_tokens: int = 100,
        rank: int = 16,
        alpha: float = 32.0,
        lora_dropout: float = 0.1,
        threshold: float = 0.8,
        decider_layers: Sequence[int] | None = None,
        decider_widths: Sequence[int] = (256,) * 6,
        decider_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if base_config is None:  # transformers compares with a configuration without arguments when it saves one
            base_config = {"model_type": BASES[0]}
        if isinstance(base_config, dict):
            base_config = AutoConfig.for_model(**base_config)
        base: Any = base_config
        if decider_layers is None:
            decider_layers = sorted({round(part * base.num_hidden_layers / 4) for part in range(5)})
        self.base_config = base_config
        self.max_depth, self.top_tokens, self.threshold = max_depth, top_tokens, threshold
        self.rank, self.alpha, self.lora_dropout = rank, alpha, lora_dropout
        self.decider_layers, self.decider_widths = list(decider_layers), list(decider_widths)
        self.decider_dropout = decider_dropout
        self._check(base)
        kwargs["tie_word_embeddings"] = base.tie_word_embeddings
        super().__init__(**kwargs)

    def _check(self, base: Any) -> None:
        if base.model_type not in BASES:
            raise ValueError(f"base_config must be of {' or '.join(BASES)}, got {base.model_type}")
        if "sliding_attention" in (getattr(base, "layer_types", None) or ()):
            raise ValueError("base_config must have full attention in every layer, got sliding windows")
        for name, least in (("max_depth", 2), ("rank", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 1 <= self.top_tokens <= base.vocab_size:
            raise ValueError(
                f"top_tokens must be from 1 to the vocabulary's {base.vocab_size} tokens, got {self.top_tokens}"
            )
        for name in ("threshold", "lora_dropout", "decider_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if not self.decider_layers or not all(0 <= layer <= base.num_hidden_layers for layer in self.decider_layers):
            raise ValueError(f"decider_layers must be from 0 to {base.num_hidden_layers}, got {self.decider_layers}")


AutoConfig.register("tah", TaHConfig)
