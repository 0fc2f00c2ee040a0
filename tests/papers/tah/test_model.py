import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.tah import TaHConfig, TaHForCausalLM, wrap
from everyformer.papers.tah.attention import Memory
from everyformer.papers.tah.modules import mean_embedding

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32, "initializer_range": 0.4, "use_cache": False,
}  # fmt: skip
KINDS = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
IDS = torch.randint(30, (3, 9), generator=torch.Generator().manual_seed(1))
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
OPTIONS = {"top_tokens": 8, "rank": 2, "decider_widths": (12, 8)}


def base(kind="qwen3", **options):
    config, model = KINDS[kind]
    torch.manual_seed(0)
    return model(config(**{**SIZES, **options})).eval()


def built(kind="qwen3", tied=False, num_hidden_layers=2, **options):
    """With low-rank weights that count, and a threshold between the decider's probabilities."""
    plain = base(kind, tie_word_embeddings=tied, num_hidden_layers=num_hidden_layers)
    model = wrap(plain, **{**OPTIONS, **options})
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        found = model(IDS, depths=1, return_scores=True).scores[..., 0].sigmoid().flatten().sort().values
    middle = len(found) // 2 + int(found[len(found) // 2 :].diff().argmax())  # where a rounding error decides nothing
    model.threshold = float(found[middle : middle + 2].mean())
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_pass_is_the_language_model_to_the_bit(kind):
    plain = base(kind)
    expected = plain(IDS).logits
    model = built(kind)
    assert torch.equal(model(IDS, depths=1).logits, expected)
    second = model(IDS, depths=2).logits
    assert torch.equal(model(IDS, depths=1).logits, expected)
    assert not torch.allclose(second, expected, atol=0.1)


def test_low_rank_weights_begin_at_nothing():
    model = wrap(base(), **OPTIONS)
    before = model(IDS, depths=2).logits
    for name, parameter in model.named_parameters():
        if name.endswith("lora_a"):
            torch.nn.init.normal_(parameter)
    assert torch.equal(model(IDS, depths=2).logits, before)


def test_a_further_pass_reads_the_mean_of_the_likeliest_embeddings():
    logits, embedding = torch.randn(2, 5), torch.randn(5, 3)
    found = mean_embedding(logits, embedding, 2)
    for row, value in zip(logits, found, strict=True):
        first, second = row.argsort(descending=True)[:2]
        share = torch.sigmoid(row[first] - row[second])
        torch.testing.assert_close(value, share * embedding[first] + (1 - share) * embedding[second])


def test_the_logits_of_a_token_are_summed_over_its_passes():
    """One token that passes twice, computed by hand from the language model's own layers."""
    plain, model = base(), wrap(base(), **OPTIONS)
    token = IDS[:1, :1]
    first = plain(token).logits
    x = mean_embedding(first, plain.get_input_embeddings().weight, 8)
    # The second pass sees itself and the first, both at position 0.
    both = torch.cat([plain.get_input_embeddings()(token), x], dim=1)
    mask = torch.tensor([[True, False], [True, True]])[None, None]
    second = plain(inputs_embeds=both, position_ids=torch.zeros(1, 2, dtype=torch.long), attention_mask=mask).logits
    torch.testing.assert_close(model(token, depths=2).logits, first + second[:, 1:])


@pytest.mark.parametrize("max_depth", [2, 3])
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_nothing_depends_on_later_tokens_or_on_deeper_passes_of_others(max_depth, data):
    model = MODELS[max_depth]
    depths = torch.tensor(data.draw(st.lists(st.integers(1, max_depth), min_size=9, max_size=9)))[None].expand(3, -1)
    cut = data.draw(st.integers(1, 8))
    whole = model(IDS, depths=depths)
    assert torch.equal(whole.depths, depths)
    torch.testing.assert_close(model(IDS[:, :cut], depths=depths[:, :cut]).logits, whole.logits[:, :cut], **CLOSE)
    # A token that takes no pass beyond a bound cannot see that others do not take theirs.
    bound = data.draw(st.integers(1, max_depth))
    bounded, same = model(IDS, depths=depths.clamp(max=bound)).logits, depths <= bound
    torch.testing.assert_close(bounded[same], whole.logits[same], **CLOSE)


MODELS = {depth: built(max_depth=depth) for depth in (2, 3)}


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_reading_in_parts_equals_reading_at_once(data):
    model = MODELS[data.draw(st.sampled_from([2, 3]))]
    cuts = sorted(data.draw(st.sets(st.integers(1, 8), max_size=4)))
    padding = data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3))
    mask = torch.arange(9) >= torch.tensor(padding)[:, None]
    whole, memory, parts = model(IDS, mask.long()), Memory(model.config.max_depth), []
    for start, end in zip([0, *cuts], [*cuts, 9], strict=True):
        parts.append(model(IDS[:, start:end], mask[:, start:end].long(), memory=memory))
    torch.testing.assert_close(torch.cat([part.logits for part in parts], 1)[mask], whole.logits[mask], **CLOSE)
    assert torch.equal(torch.cat([part.depths for part in parts], 1)[mask], whole.depths[mask])


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_equals_recomputation_token_for_token(kind):
    model, tokens = built(kind), IDS
    with torch.no_grad():
        for _ in range(15):
            out = model(tokens)
            tokens = torch.cat([tokens, out.logits[:, -1:].argmax(-1)], dim=1)
    assert 0 < float((out.depths > 1).float().mean()) < 1
    assert torch.equal(model.generate(IDS, max_new_tokens=15), tokens)


def test_padded_rows_generate_as_if_alone():
    model = built()
    mask = (torch.arange(9) >= torch.tensor([0, 3, 5])[:, None]).long()
    together = model.generate(IDS, mask, max_new_tokens=8)
    for row, padding in enumerate([0, 3, 5]):
        alone = model.generate(IDS[row : row + 1, padding:], max_new_tokens=8)
        assert torch.equal(together[row, padding:], alone[0])


def test_generation_stops_at_the_end_token_and_draws_by_the_generator():
    model = built()
    end = int(model.generate(IDS[:1], max_new_tokens=1)[0, -1])
    stopped = model.generate(IDS[:1], max_new_tokens=9, eos_token_id=end)
    assert stopped.shape[1] == 10
    draws = [
        model.generate(IDS, max_new_tokens=5, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("kind", "tied"), [("qwen3", True), ("llama", False)])
def test_models_are_saved_and_loaded_as_transformers_does(kind, tied, tmp_path):
    model = built(kind, tied)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    for loader in (TaHForCausalLM, transformers.AutoModelForCausalLM):
        again = loader.from_pretrained(tmp_path)
        assert isinstance(again, TaHForCausalLM) and again.threshold == model.threshold
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_folder_of_a_language_model_can_be_wrapped(tmp_path):
    plain = base("llama")
    plain.save_pretrained(tmp_path)
    assert torch.equal(wrap(tmp_path, **OPTIONS)(IDS, depths=1).logits, plain(IDS).logits)


def test_a_wrapped_model_still_answers_by_itself():
    plain = base()
    mask = (torch.arange(9) >= torch.tensor([0, 3, 5])[:, None]).long()
    expected = plain(IDS, attention_mask=mask).logits[mask.bool()]
    model = wrap(plain, **OPTIONS)
    torch.testing.assert_close(model.base(IDS, attention_mask=mask).logits[mask.bool()], expected)


def test_gradients_reach_everything_that_a_depth_uses():
    model = built()
    model(IDS, labels=IDS, depths=1 + (IDS % 2)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith("decider.")}


def test_bfloat16_and_compile():
    model = built()
    half = copy.deepcopy(model).bfloat16()
    torch.testing.assert_close(half(IDS, depths=2).logits.float(), model(IDS, depths=2).logits, atol=0.6, rtol=0.1)
    assert half(IDS).logits.dtype == torch.bfloat16
    shallow = built(num_hidden_layers=1)
    torch.testing.assert_close(torch.compile(shallow, backend="aot_eager")(IDS).logits, shallow(IDS).logits, **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be from 0 to 1, got 1.5"),
        ({"top_tokens": 31}, r"top_tokens must be from 1 to the vocabulary's 30 tokens, got 31"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"max_depth": 1}, "max_depth must be at least 2, got 1"),
        ({"decider_layers": (0, 3)}, r"decider_layers must be from 0 to 2, got \[0, 3\]"),
        ({"lora_dropout": -0.1}, "lora_dropout must be from 0 to 1, got -0.1"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        wrap(base(), **{**OPTIONS, **options})


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="model must be a causal language model of qwen3 or llama, got Linear"):
        wrap(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="got TaHForCausalLM"):
        wrap(built())
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="base_config must be of qwen3 or llama, got gpt2"):
        wrap(gpt, **OPTIONS)
    with pytest.raises(ValueError, match="must not have been wrapped before"):
        wrap(built().base, **OPTIONS)
    with pytest.raises(ValueError, match="full attention in every layer"):
        TaHConfig(transformers.Qwen3Config(**SIZES, layer_types=["full_attention", "sliding_attention"]), top_tokens=8)


def test_inputs_that_do_not_fit_are_named():
    model = built()
    with pytest.raises(ValueError, match="threshold must be from 0 to 1, got -1"):
        model.threshold = -1
    with pytest.raises(ValueError, match=r"input_ids must end within 32 positions, got 0 \+ 33 tokens"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match=r"max_new_tokens must end within 32 positions, got 9 \+ 24"):
        model.generate(IDS, max_new_tokens=24)
    with pytest.raises(ValueError, match="input_ids must hold tokens from 0 to 29, got 0 to 30"):
        model.generate(torch.tensor([[0, 30]]), max_new_tokens=1)
    with pytest.raises(ValueError, match=r"attention_mask must be of 3 rows and at least 9 tokens, got \(3, 8\)"):
        model(IDS, IDS[:, 1:])
    with pytest.raises(ValueError, match="depths must be from 1 to max_depth 2, got 3 to 3"):
        model(IDS, depths=3)
    with pytest.raises(ValueError, match=r"depths must be shaped like input_ids \(3, 9\), got \(3, 8\)"):
        model(IDS, depths=torch.ones(3, 8, dtype=torch.long))
