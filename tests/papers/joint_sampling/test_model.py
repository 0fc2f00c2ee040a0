import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.papers.joint_sampling import JointSampler, MaskedDiffusionLM, masked_loss
from everyformer.parts.language import LanguageModel


def test_an_untrained_sampler_gives_the_states_back(base, untrained):
    tokens = torch.randint(11, (2, 9))
    states = base.states(tokens)
    assert torch.equal(untrained(states, base.embed(tokens)), states)
    assert torch.equal(untrained.block.mlp.down.weight, base.network.blocks[-1].mlp.down.weight)


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(2, 20), heads=st.sampled_from([2, 4]), kv_heads=st.sampled_from([1, 2]), bias=st.booleans(),
    placed=st.integers(1, 4),
)  # fmt: skip
def test_kept_keys_and_values_give_what_the_whole_layer_gives(length, heads, kv_heads, bias, placed):
    torch.manual_seed(0)
    base = MaskedDiffusionLM(
        vocabulary=9, dim=16, depth=1, heads=heads, kv_heads=kv_heads, bias=bias, mask_token=8, longest=20
    )
    sampler = JointSampler.from_base(base)
    nn.init.normal_(sampler.leave.weight)
    tokens = torch.full((3, length), 8)
    states = base.states(tokens)
    with torch.no_grad():
        memory = sampler.begin(states, base.embed(tokens))
        for _ in range(placed):
            rows, what = torch.randint(length, (3, 1)), torch.randint(8, (3, 1))
            tokens = tokens.scatter(1, rows, what)
            sampler.update(memory, rows, base.embed(what))
        rows = torch.randint(length, (3, 5))
        found = sampler.query(memory, rows)
        whole = sampler(states, base.embed(tokens))
    torch.testing.assert_close(found, whole.gather(1, rows[..., None].expand(-1, -1, 16)), rtol=1e-5, atol=1e-5)


def test_a_shifted_base_predicts_a_position_from_the_row_before():
    torch.manual_seed(0)
    model = MaskedDiffusionLM(vocabulary=9, dim=16, depth=2, heads=2, mask_token=8, shifted=True)
    tokens = torch.randint(9, (2, 7))
    raw = model.network(tokens)
    torch.testing.assert_close(model(tokens), raw[:, [0, 0, 1, 2, 3, 4, 5]])


def test_the_masked_loss_counts_masked_tokens_only(base):
    tokens = torch.randint(10, (3, 6))
    chances = torch.tensor([[0.0, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9]]).expand(3, -1)  # only the second is masked
    expected = F.cross_entropy(base(tokens.index_fill(1, torch.tensor([1]), 10))[:, 1], tokens[:, 1])
    torch.testing.assert_close(masked_loss(base, tokens, chances), expected)


def test_a_saved_sampler_comes_back_for_its_own_base_only(base, sampler, tmp_path):
    sampler.save_pretrained(tmp_path, base, "ten-tokens")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sampler.json", "sampler.safetensors"]
    again = JointSampler.from_pretrained(tmp_path, base)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in sampler.state_dict().items())
    with torch.no_grad():
        base.network.norm.weight[0] += 1
    with pytest.raises(ValueError, match="base must be ten-tokens with the weights of hash"):
        JointSampler.from_pretrained(tmp_path, base)
    other = MaskedDiffusionLM(vocabulary=11, dim=32, depth=2, heads=2, kv_heads=1, mask_token=10, longest=25)
    with pytest.raises(ValueError, match="its longest is 24, the base's 25"):
        JointSampler.from_pretrained(tmp_path, other)
    with pytest.raises(ValueError, match="folder must hold a saved sampler"):
        JointSampler.from_pretrained(tmp_path / "nowhere", base)


def test_both_compile_and_run_in_bf16(base, sampler):
    tokens = torch.randint(11, (2, 8))
    states, embedded = base.states(tokens), base.embed(tokens)
    compiled = torch.compile(sampler, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(states, embedded), sampler(states, embedded))
    torch.testing.assert_close(torch.compile(base, backend="aot_eager", fullgraph=True)(tokens), base(tokens))
    half, added = base.bfloat16(), sampler.bfloat16()
    found = added(half.states(tokens), half.embed(tokens))
    assert found.dtype == torch.bfloat16
    scale = float(added(states.bfloat16(), embedded.bfloat16()).abs().max().detach())
    assert float((found - added(states.bfloat16(), embedded.bfloat16())).abs().max().detach()) < 0.1 * scale


def test_bad_sizes_and_bases_are_named(base, sampler):
    with pytest.raises(ValueError, match="mask_token must be from 0 to 8, got 9"):
        MaskedDiffusionLM(vocabulary=9, dim=16, depth=1, heads=2, mask_token=9)
    with pytest.raises(ValueError, match="tokens must be at most longest 24, got 25"):
        base(torch.zeros(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match="base must see both sides, got a causal LanguageModel"):
        JointSampler.from_base(LanguageModel(vocabulary=9, dim=16, depth=1, heads=2))
    with pytest.raises(TypeError, match="base must be a MaskedDiffusionLM"):
        JointSampler.from_base(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"one shape \(batch, tokens, 32\), got \(1, 4, 32\) and \(1, 5, 32\)"):
        sampler(torch.zeros(1, 4, 32), torch.zeros(1, 5, 32))
