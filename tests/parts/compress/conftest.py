"""Tiny models of this library, of transformers and of timm, for the tests of compressors."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from timm.models import VisionTransformer

from everyformer.parts.language import LanguageModel


def build(kind: str) -> tuple[Any, torch.Tensor]:
    """A model with random weights, and an input for it."""
    torch.manual_seed(0)
    tokens = torch.randint(64, (2, 12))
    pictures = torch.randn(2, 3, 16, 16)
    common = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "ours":
        return LanguageModel(vocabulary=64, dim=32, depth=4, heads=4, kv_heads=2).eval(), tokens
    if kind == "llama":
        config: Any = transformers.LlamaConfig(vocab_size=64, num_key_value_heads=2, **common)
        return transformers.LlamaForCausalLM(config).eval(), tokens
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=64)
        return transformers.GPT2LMHeadModel(config).eval(), tokens
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=64, **common)
        return transformers.BertForMaskedLM(config).eval(), tokens
    if kind == "hf_vit":
        config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=5, **common)
        return transformers.ViTForImageClassification(config).eval(), pictures
    if kind == "vit":
        model = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=4, num_heads=4, num_classes=5)
        return model.eval(), pictures
    raise ValueError(kind)


@torch.no_grad()
def logits(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    output = model(inputs)
    return getattr(output, "logits", output)


@pytest.fixture
def models() -> SimpleNamespace:
    """``build(kind)`` and ``logits(model, inputs)``."""
    return SimpleNamespace(build=build, logits=logits)
