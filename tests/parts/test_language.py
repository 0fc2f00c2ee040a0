"""The small language model: equal to transformers' LLaMA and Qwen2, with and without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from everyformer.parts.language import EncoderDecoder, LanguageModel, draw


def theirs(kind: str) -> nn.Module:
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "qwen2":
        model: nn.Module = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def ours(state: dict[str, Tensor], bias: bool) -> LanguageModel:
    model = LanguageModel(
        vocabulary=40, dim=32, depth=2, heads=4, kv_heads=2, hidden=48, longest=64, tied=False, bias=bias
    )
    renamed = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"],
    }
    for number in range(2):
        old, new = f"model.layers.{number}.", f"blocks.{number}."
        for part in ["weight", "bias"] if bias else ["weight"]:
            qkv = [state[f"{old}self_attn.{name}_proj.{part}"] for name in "qkv"]
            renamed[f"{new}attention.qkv.{part}"] = torch.cat(qkv)
        renamed[f"{new}attention.out.weight"] = state[f"{old}self_attn.o_proj.weight"]
        renamed[f"{new}attention_norm.weight"] = state[f"{old}input_layernorm.weight"]
        renamed[f"{new}mlp_norm.weight"] = state[f"{old}post_attention_layernorm.weight"]
        gate_up = [state[f"{old}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        renamed[f"{new}mlp.gate_up.weight"] = torch.cat(gate_up)
        renamed[f"{new}mlp.down.weight"] = state[f"{old}mlp.down_proj.weight"]
    model.load_state_dict(renamed)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_gives_what_transformers_gives(kind: str) -> None:
    reference = theirs(kind)
    model = ours(reference.state_dict(), bias=kind == "qwen2")
    tokens = torch.randint(40, (3, 20))
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-5, rtol=1e-5)
    written = model.generate(tokens, 12, temperature=0)
    expected: Any = reference.generate(tokens, max_new_tokens=12, min_new_tokens=12, do_sample=False)  # type: ignore[operator]
    assert torch.equal(written, expected)


@torch.no_grad()
@given(prompt=st.integers(1, 7), pieces=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_cache_changes_nothing(prompt: int, pieces: list[int]) -> None:
    torch.manual_seed(1)
    model = LanguageModel(vocabulary=20, dim=32, depth=2, heads=4, kv_heads=1, longest=32).double().eval()
    tokens = torch.randint(20, (2, prompt + sum(pieces)))
    cache = model.cache(2, tokens.shape[1])
    parts, start = [], 0
    for size in [prompt, *pieces]:
        parts.append(model(tokens[:, start : start + size], cache=cache))
        start += size
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-10, rtol=1e-10)


def test_causal_or_not() -> None:
    torch.manual_seed(2)
    tokens = torch.randint(20, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 20
    for causal in (True, False):
        model = LanguageModel(vocabulary=20, dim=32, depth=1, heads=2, causal=causal).eval()
        same = (model(tokens) == model(changed)).all(-1)[0]
        assert same[:5].all() == causal
        assert not same[5:].any()


def test_a_mixture_of_embeddings_stands_for_tokens() -> None:
    model = LanguageModel(vocabulary=20, dim=32, depth=1, heads=2)
    tokens = torch.randint(20, (2, 6))
    mixed = F.one_hot(tokens, 20).float() @ model.embedding.weight
    torch.testing.assert_close(model(embedded=mixed), model(tokens))


def test_encoder_decoder_sees_the_source_and_only_earlier_targets() -> None:
    torch.manual_seed(3)
    model = EncoderDecoder(vocabulary=20, dim=32, encoder_depth=1, decoder_depth=2, heads=2).eval()
    source, target = torch.randint(20, (2, 7)), torch.randint(20, (2, 5))
    whole = model(source, target)
    torch.testing.assert_close(model(source, target[:, :3]), whole[:, :3])
    hidden = torch.tensor([True] * 5 + [False] * 2).expand(2, 1, 1, 7)
    other = source.clone()
    other[:, 5:] = 1
    masked = [model(tokens, target, source_mask=hidden) for tokens in (source, other)]
    torch.testing.assert_close(*masked)
    assert not torch.allclose(model(other, target), whole)


def test_compiles_and_runs_in_bf16() -> None:
    model = LanguageModel(vocabulary=20, dim=32, depth=2, heads=2)
    tokens = torch.randint(20, (2, 6))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens))
    assert model.bfloat16()(tokens).dtype == torch.bfloat16


def test_sampling_follows_the_softmax_and_its_seed() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = draw(logits.expand(20_000, 4), temperature=0.7, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, (logits / 0.7).softmax(0), atol=0.01, rtol=0)
    assert draw(logits.expand(500, 4), top_k=2).max() == 1
    assert draw(logits, temperature=0) == 0
    assert torch.equal(
        drawn, draw(logits.expand(20_000, 4), temperature=0.7, generator=torch.Generator().manual_seed(0))
    )


def test_what_cannot_be_is_named() -> None:
    model = LanguageModel(vocabulary=20, dim=32, depth=1, heads=2, longest=8)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="tokens must be at most longest 8, got 9"):
        model(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="prompt and count must be at most 8, got 4 \\+ 5"):
        model.generate(tokens, 5)
    with pytest.raises(ValueError, match="prompt must hold tokens from 0 to 19, got 20 to 20"):
        model.generate(tokens + 20, 1)
    with pytest.raises(ValueError, match="prompt must be whole numbers"):
        model.generate(tokens[:, :0], 1)
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        model.generate(tokens, 1, temperature=-1)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        model.generate(tokens, 1, top_k=0)
    with pytest.raises(ValueError, match="causal must be True"):
        LanguageModel(vocabulary=20, dim=32, depth=1, heads=2, causal=False).generate(tokens, 1)
    with pytest.raises(ValueError, match="dim must be a multiple of heads 3, got 32"):
        LanguageModel(vocabulary=20, dim=32, depth=1, heads=3)
    with pytest.raises(ValueError, match="heads must be a multiple of kv_heads 3, got 4"):
        LanguageModel(vocabulary=20, dim=32, depth=1, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="source must have at most longest 8 tokens, got 9"):
        EncoderDecoder(vocabulary=20, dim=32, encoder_depth=1, decoder_depth=1, heads=2, longest=8).encode(
            torch.zeros(1, 9, dtype=torch.long)
        )
