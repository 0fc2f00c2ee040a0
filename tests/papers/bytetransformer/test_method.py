import copy
import threading

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.bytetransformer import convert, pack, revert, unpack

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
CONFIGS = {
    "bert": transformers.BertConfig(**SMALL),
    "roberta": transformers.RobertaConfig(**SMALL),
    "xlm-roberta": transformers.XLMRobertaConfig(**SMALL),
    "albert": transformers.AlbertConfig(**SMALL, embedding_size=8),
    "distilbert": transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=50),
    "deberta": transformers.DebertaConfig(**SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"]),
}
LENGTHS = torch.tensor([9, 3, 1, 6])


def batch(left=False, tokens=9):
    ids = torch.randint(3, 50, (len(LENGTHS), tokens))
    mask = torch.arange(tokens) < LENGTHS[:, None]
    return ids, (mask.flip(1) if left else mask).long()


def build(name, head=transformers.AutoModel):
    model = head.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():  # so that biases and norms matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.booleans(), st.integers(0, 3))
def test_packing_keeps_the_valid_tokens_and_unpacking_puts_them_back(lengths, left, spare):
    tokens = max(lengths) + spare
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    x = torch.randn(len(lengths), tokens, 3)
    packed = pack(x, mask)
    assert torch.equal(packed.values, x[mask])
    assert packed.cu_seqlens.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert packed.max_seqlen == max(lengths)
    assert torch.equal(unpack(packed), x * mask.unsqueeze(-1))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 0, 1]], "mask has holes in row 0"),
        ([[1, 1, 0], [0, 0, 0]], "mask has no valid token in row 1"),
        ([[1, 1]], r"mask must be \(batch, tokens\)"),
    ],
)
def test_masks_that_are_not_padding_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        pack(torch.randn(len(mask), 3, 2), torch.tensor(mask))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_converted_model_gives_the_same_at_valid_positions_and_zeros_elsewhere(name, left):
    model = build(name)
    ids, mask = batch(left)
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask)
        after = convert(model)(input_ids=ids, attention_mask=mask)
    valid = mask.bool()
    torch.testing.assert_close(after.last_hidden_state[valid], before.last_hidden_state[valid], atol=1e-5, rtol=1e-5)
    assert after.last_hidden_state[~valid].abs().max() == 0
    if "pooler_output" in before and not left:
        torch.testing.assert_close(after.pooler_output, before.pooler_output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_give_the_same_logits_and_gradients(name):
    for head in (transformers.AutoModelForSequenceClassification, transformers.AutoModelForTokenClassification):
        model = build(name, head)
        ids, mask = batch()
        found = []
        for treat in (lambda m: m, convert):
            logits = treat(model)(input_ids=ids, attention_mask=mask).logits
            kept = logits if logits.ndim == 2 else logits[mask.bool()]
            parameters = [p for p in model.parameters() if p.requires_grad]
            found.append([kept, *torch.autograd.grad(kept.square().sum(), parameters, allow_unused=True)])
        for ours, truth in zip(*found, strict=True):
            if truth is not None:
                torch.testing.assert_close(ours, truth, atol=1e-4, rtol=1e-4)


def test_masked_language_models_give_the_same():
    model = build("bert", transformers.AutoModelForMaskedLM)
    ids, mask = batch()
    before = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(convert(model)(ids, mask).logits[mask.bool()], before, atol=1e-5, rtol=1e-5)


def test_without_a_mask_every_token_counts():
    model = build("bert")
    ids, _ = batch()
    before = model(ids).last_hidden_state
    torch.testing.assert_close(convert(model)(ids).last_hidden_state, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_dict_stays_and_revert_undoes(name):
    model = build(name)
    ids, mask = batch()
    keys = list(model.state_dict())
    before = model(input_ids=ids, attention_mask=mask).last_hidden_state
    convert(model)
    assert list(model.state_dict()) == keys
    revert(model)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).last_hidden_state, before)
    with pytest.raises(ValueError, match="has not been converted"):
        revert(model)


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_it_trains_with_dropout_and_in_bf16(name):
    model = convert(build(name)).train().to(torch.bfloat16)
    ids, mask = batch()
    model(input_ids=ids, attention_mask=mask).last_hidden_state.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_what_cannot_be_converted_is_named():
    with pytest.raises(TypeError, match="AlbertModel, BertModel, DebertaModel, DistilBertModel"):
        convert(torch.nn.Linear(2, 2))
    decoder = transformers.BertModel(transformers.BertConfig(**SMALL, is_decoder=True))
    with pytest.raises(ValueError, match="must be an encoder"):
        convert(decoder)
    model = convert(build("bert"))
    with pytest.raises(ValueError, match="converted before"):
        convert(model)
    ids, mask = batch()
    with pytest.raises(ValueError, match="output_attentions is not available"):
        model(ids, mask, output_attentions=True)
    with pytest.raises(ValueError, match="output_hidden_states is not available"):
        model(ids, attention_mask=mask, output_hidden_states=True)
    mask[0, 2] = 0
    with pytest.raises(ValueError, match="mask has holes in row 0"):
        model(ids, attention_mask=mask)


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_a_copy_runs_on_its_own_weights_and_reverts_alone(name):
    model = convert(build(name))
    ids, mask = batch()
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    packed = copied(input_ids=ids, attention_mask=mask).last_hidden_state
    padded = revert(copied)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(packed[mask.bool()], padded[mask.bool()], atol=1e-5, rtol=1e-5)
    assert model(input_ids=ids, attention_mask=mask).last_hidden_state[~mask.bool()].abs().max() == 0


def test_every_encoder_of_a_model_is_converted():
    pair = convert(torch.nn.ModuleList([build("bert"), build("deberta")]))
    ids, mask = batch()
    for model in pair:
        assert model(input_ids=ids, attention_mask=mask).last_hidden_state[~mask.bool()].abs().max() == 0


def test_calls_from_several_threads_keep_their_own_masks():
    model = convert(build("bert"))
    ids, _ = batch()
    masks = [(torch.arange(9) < torch.tensor(lengths)[:, None]).long() for lengths in ([9, 3, 1, 6], [2, 9, 4, 4])]
    with torch.no_grad():
        alone = [model(ids, attention_mask=mask).last_hidden_state for mask in masks]
    wrong, together = [], threading.Barrier(2)

    def ask(which):
        together.wait()
        for _ in range(40):
            with torch.no_grad():
                out = model(ids, attention_mask=masks[which]).last_hidden_state
            if out.shape != alone[which].shape or not torch.allclose(out, alone[which], atol=1e-5):
                wrong.append(which)

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_checkpointed_gradients_of_two_batches_before_one_backward(name):
    config = copy.deepcopy(CONFIGS[name])
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = convert(transformers.AutoModel.from_config(config)).train()
    ids, mask = batch()
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        outputs = [model(ids, attention_mask=m).last_hidden_state for m in (mask, torch.ones_like(mask))]
        sum(out.square().sum() for out in outputs).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-4, rtol=1e-4)
