import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from everyformer.papers.joint_sampling import (
    JointSampler,
    TransformersMaskedLM,
    checkpoint,
    custom_generate,
    from_dream,
    generate,
)

SHAPE = {
    "vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 40, "rms_norm_eps": 1e-6,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e6}
TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))


def qwen(**options):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**{**SHAPE, "rope_parameters": ROPE, "tie_word_embeddings": False, **options})
    return transformers.Qwen2ForCausalLM(config).eval()


def llama(**options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, "tie_word_embeddings": False, **options})
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    """A folder as Dream is published, and the same weights in transformers."""
    folder = tmp_path_factory.mktemp("dream")
    model = qwen()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    names = sorted(state)
    for number, part in enumerate((names[:10], names[10:])):
        save_file({key: state[key] for key in part}, folder / f"model-{number}.safetensors")
    (folder / "config.json").write_text(json.dumps({**SHAPE, "mask_token_id": 30, "rope_theta": 1e6}))
    return folder, model


def test_dream_read_from_its_folder_is_qwen_without_the_causal_mask(dream):
    folder, model = dream
    ours, theirs = from_dream(folder), TransformersMaskedLM(model, mask_token=30, shifted=True)
    assert ours.sizes == theirs.sizes
    torch.testing.assert_close(ours.states(TOKENS), theirs.states(TOKENS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS), rtol=1e-5, atol=1e-5)
    raw = model(TOKENS, attention_mask=torch.zeros(2, 1, 9, 9)).logits
    torch.testing.assert_close(ours(TOKENS)[:, 1:], raw[:, :-1], rtol=1e-5, atol=1e-5)


def test_a_sampler_starts_from_the_same_layer_either_way(dream):
    folder, model = dream
    ours, theirs = from_dream(folder), TransformersMaskedLM(model, mask_token=30, shifted=True)
    one, other = JointSampler.from_base(ours), JointSampler.from_base(theirs)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in one.state_dict().items())
    torch.nn.init.normal_(one.leave.weight)
    other.load_state_dict(one.state_dict())
    written = [
        generate(base, sampler, TOKENS % 30, length=20, generator=torch.Generator().manual_seed(1)).sequences
        for base, sampler in ((ours, one), (theirs, other))
    ]
    assert torch.equal(*written)


def test_llada_is_not_shifted():
    model = llama()
    base = TransformersMaskedLM(model, mask_token=30)
    raw = model(TOKENS, attention_mask=torch.zeros(2, 1, 9, 9)).logits
    torch.testing.assert_close(base(TOKENS), raw, rtol=1e-5, atol=1e-5)
    states = base.states(TOKENS)
    block = base.last_block()
    found = []
    hook = model.model.layers[-1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    base.states(TOKENS)
    hook.remove()
    table = JointSampler(base.sizes).table[:, :9]
    torch.testing.assert_close(block(found[0], table), states, rtol=1e-5, atol=1e-5)
    out = generate(base, JointSampler.from_base(base), TOKENS % 30, length=14, tokens_per_pass=2)
    assert torch.equal(out.sequences[:, :9], TOKENS % 30)


def test_it_is_a_generate_function_of_transformers():
    model = llama()
    base = TransformersMaskedLM(model, mask_token=30)
    sampler = JointSampler.from_base(base)
    torch.nn.init.normal_(sampler.leave.weight)
    prompt = TOKENS % 30
    found = model.generate(
        prompt, custom_generate=custom_generate(sampler, base), max_new_tokens=6, do_sample=False,
        tokens_per_pass=3, order="margin", pad_token_id=0,
    )  # fmt: skip
    wanted = generate(base, sampler, prompt, length=15, tokens_per_pass=3, order="margin", temperature=0.0)
    assert torch.equal(found, wanted.sequences)


def test_bases_of_transformers_that_do_not_fit_are_named():
    with pytest.raises(
        ValueError, match="mask_token must be given: the tokenizer and the model's configuration name none"
    ):
        TransformersMaskedLM(llama())
    with pytest.raises(TypeError, match="model must have the layers of Qwen2 or LLaMA, got GPT2LMHeadModel"):
        TransformersMaskedLM(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1)))
    causal = llama()
    for layer in causal.model.layers:
        layer.self_attn.forward = only_itself
    with pytest.raises(ValueError, match="model must see both sides, got a causal LlamaForCausalLM"):
        TransformersMaskedLM(causal, mask_token=30)


def only_itself(hidden_states, **_):
    return hidden_states, None


def test_folders_and_options_that_are_missing_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"path must be a folder with config\.json and safetensors files"):
        from_dream(tmp_path)
    with pytest.raises(ValueError, match="config must give mask_token_id"):
        checkpoint.load({}, SHAPE)
