import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.maze_mlmu import PAST, fill, joined, mlm_u_loss, next_token_loss, two_stacks, write
from everyformer.papers.maze_mlmu.method import draw_mask
from everyformer.parts.language import EncoderDecoder, LanguageModel

PADDING, MASK, END = 0, 1, 3
SMALL = {"vocabulary": 12, "dim": 16, "heads": 2}


def fillers():
    past = PAST(**SMALL, depth=1, hidden=(MASK, PADDING))
    stacks = EncoderDecoder(**SMALL, encoder_depth=1, decoder_depth=1, causal=False)
    both_sides = LanguageModel(**SMALL, depth=1, causal=False)
    return {"PAST": (past, past), "two stacks": (stacks, two_stacks(stacks)), "one": (both_sides, joined(both_sides))}


def batch():
    prompt = torch.randint(4, 12, (6, 5))
    path = torch.randint(4, 12, (6, 7))
    path[:, 4], path[:, 5:] = END, PADDING
    return prompt, path


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0.01, 0.99))
@settings(max_examples=30, deadline=None)
def test_padding_is_never_predicted_and_a_rate_is_kept(rows, length, rate):
    path = torch.full((rows, length), 5)
    path[:, length // 2 + 1 :] = PADDING
    masked = draw_mask(path, padding=PADDING)
    assert masked.shape == path.shape and not (masked & (path == PADDING)).any()
    many = draw_mask(torch.zeros(100, 400, dtype=torch.long), rate=rate)
    assert abs(float(many.float().mean()) - rate) < 0.02


def test_rates_are_uniform_over_sequences():
    torch.manual_seed(0)
    shares = draw_mask(torch.ones(4000, 500, dtype=torch.long)).float().mean(1).sort().values
    assert (shares - torch.linspace(0, 1, 4000)).abs().max() < 0.05
    assert not torch.equal(*(draw_mask(torch.ones(3, 50), generator=torch.Generator().manual_seed(s)) for s in (0, 1)))
    assert torch.equal(*(draw_mask(torch.ones(3, 50), generator=torch.Generator().manual_seed(s)) for s in (1, 1)))


def test_the_loss_is_that_of_what_was_hidden():
    prompt, path = batch()
    seen = {}

    def model(prompt, hidden):
        seen["hidden"] = hidden
        seen["logits"] = torch.randn(*hidden.shape, 12)
        return seen["logits"]

    loss = mlm_u_loss(model, prompt, path, mask_token=MASK, padding=PADDING)
    masked = (seen["hidden"] == MASK) & (path != PADDING)
    assert torch.equal(seen["hidden"][~masked & (path != PADDING)], path[~masked & (path != PADDING)])
    assert (seen["hidden"][path == PADDING] == MASK).all()  # nothing tells the length
    torch.testing.assert_close(loss, F.cross_entropy(seen["logits"][masked], path[masked]))


def test_without_padding_every_token_counts_and_nothing_hidden_is_no_loss():
    path = torch.full((1, 1), 5)
    losses = [float(mlm_u_loss(lambda p, h: torch.zeros(1, 1, 12), path, path, mask_token=MASK)) for _ in range(50)]
    assert sorted(set(losses)) == pytest.approx([0.0, math.log(12)])


@pytest.mark.parametrize("name", ["PAST", "two stacks", "one"])
def test_each_filler_trains_and_tells_places_apart(name):
    torch.manual_seed(0)
    model, filler = fillers()[name]
    for parameter in model.parameters():
        if parameter.dim() == 2:  # wide enough to tell places apart from the first step on
            torch.nn.init.xavier_normal_(parameter)
    prompt, path = (part[:3] for part in batch())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    first = None
    for _ in range(250):
        loss = mlm_u_loss(filler, prompt, path, mask_token=MASK, padding=PADDING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or float(loss.detach())
    assert first > 1.5
    # Three paths learned by heart come back whole by both orders, up to their ends.
    for order in ("left", "confidence"):
        found = fill(filler, prompt, 7, mask_token=MASK, end=END, order=order)
        assert torch.equal(found[:, :5], path[:, :5]), order
        assert (found[:, 5:] == MASK).all()


def test_the_likeliest_token_comes_first_after_the_end():
    asked = []
    table = torch.zeros(1, 4, 12)
    table[0, :, 5] = torch.tensor([1.0, 3.0, 2.0, 9.0])
    table[0, 3, END] = 20.0

    def model(prompt, path):
        asked.append(path[0].tolist())
        return table.clone()

    found = fill(model, torch.tensor([[4]]), 4, mask_token=MASK, end=END, order="confidence")
    assert asked == [[1, 1, 1, 1], [1, 1, 1, 3], [1, 5, 1, 3], [1, 5, 5, 3]]
    assert found.tolist() == [[5, 5, 5, END]]


def test_paths_of_a_batch_end_where_each_ends():
    def model(prompt, path):
        logits = torch.zeros(*path.shape, 12)
        logits[..., 5] = 1
        logits[0, 1, END] = logits[1, 3, END] = 2
        logits[..., MASK] = 9  # never chosen
        return logits

    for order in ("left", "confidence"):
        found = fill(model, torch.zeros(2, 1, dtype=torch.long), 6, mask_token=MASK, end=END, order=order)
        assert found.tolist() == [[5, END, 1, 1, 1, 1], [5, 5, 5, END, 1, 1]]


def test_the_baseline_is_the_loss_of_each_next_token():
    torch.manual_seed(0)
    model = LanguageModel(**SMALL, depth=1)
    prompt, path = batch()
    logits = model(torch.cat([prompt, path], 1))[:, 4:-1]
    counted = path != PADDING
    expected = F.cross_entropy(logits[counted], path[counted])
    torch.testing.assert_close(next_token_loss(model, prompt, path, padding=PADDING), expected)
    assert next_token_loss(model, prompt, path) != expected
    found = write(model, prompt, 7)
    with torch.no_grad():
        tokens = prompt
        for _ in range(7):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, tokens[:, 5:])


def test_transformers_models_take_both_objectives():
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForMaskedLM(BertConfig(vocab_size=12, **sizes))
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    prompt, path = batch()
    mlm_u_loss(joined(bert), prompt, path, mask_token=MASK, padding=PADDING).backward()
    next_token_loss(gpt, prompt, path, padding=PADDING).backward()
    assert all(model.get_input_embeddings().weight.grad.any() for model in (bert, gpt))
    assert fill(joined(bert.eval()), prompt, 7, mask_token=MASK, end=END).shape == (6, 7)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, 2])
def test_a_rate_outside_is_named(rate):
    prompt, path = batch()
    with pytest.raises(ValueError, match=f"rate must be above 0 and below 1, got {rate}"):
        mlm_u_loss(fillers()["PAST"][1], prompt, path, mask_token=MASK, rate=rate)


def test_what_does_not_fit_is_named():
    prompt, path = batch()
    model = fillers()["one"][1]
    with pytest.raises(ValueError, match="below the model's vocabulary 12, got 12"):
        mlm_u_loss(model, prompt, path.masked_fill(path == END, 12), mask_token=MASK, rate=0.999_999)
    with pytest.raises(ValueError, match="below the model's vocabulary 12, got 15"):
        mlm_u_loss(lambda p, h: torch.zeros(*h.shape, 12), prompt, path, mask_token=15)
    with pytest.raises(ValueError, match="prompt and path must be as many, got 5 and 6"):
        mlm_u_loss(model, prompt[:5], path, mask_token=MASK)
    with pytest.raises(ValueError, match=r"model must give logits for \(6, 7\) tokens, got \(6, 5, 12\)"):
        mlm_u_loss(lambda p, h: torch.zeros(6, 5, 12), prompt, path, mask_token=MASK)
    with pytest.raises(TypeError, match="model must return logits or an output that has them, got tuple"):
        mlm_u_loss(lambda p, h: (1, 2), prompt, path, mask_token=MASK)
    with pytest.raises(ValueError, match="must see both sides, got one with causal=True"):
        joined(LanguageModel(**SMALL, depth=1))
    with pytest.raises(TypeError, match="model must be an EncoderDecoder, got Linear"):
        two_stacks(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="must decode in any order, got one with causal=True"):
        two_stacks(EncoderDecoder(**SMALL, encoder_depth=1, decoder_depth=1))
    with pytest.raises(TypeError, match="model must be a LanguageModel, got PAST"):
        write(PAST(**SMALL, depth=1), prompt, 3)
    with pytest.raises(ValueError, match="causal must be True"):
        write(LanguageModel(**SMALL, depth=1, causal=False), prompt, 3)
    with pytest.raises(ValueError, match="order must be left or confidence, got 'right'"):
        fill(model, prompt, 3, mask_token=MASK, end=END, order="right")
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        fill(model, prompt, 0, mask_token=MASK, end=END)
