import pytest
import torch
import transformers

from everyformer.papers.tah import decider_loss, freeze, hard_tokens, least_needed, prune, wrap

SIZES = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "initializer_range": 0.4, "use_cache": False,
}  # fmt: skip
IDS = torch.randint(20, (4, 10), generator=torch.Generator().manual_seed(2))


def base(**options):
    torch.manual_seed(0)
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**SIZES, **options})).eval()


def built(**options):
    return wrap(base(), top_tokens=8, rank=2, decider_widths=(16, 16), **options)


def test_hard_tokens_are_those_before_which_the_reference_is_wrong():
    reference = base()
    guesses = reference(IDS).logits.argmax(-1)
    easy = IDS.clone()
    depths = hard_tokens(reference, easy)
    for row in range(4):
        for place in range(9):
            assert depths[row, place] == 1 + int(guesses[row, place] != IDS[row, place + 1])
    assert (depths[:, -1] == 1).all() and (depths > 1).any()


def test_what_need_not_be_predicted_is_easy():
    reference, labels = base(), IDS.clone()
    labels[:, :6] = -100
    whole = hard_tokens(reference, IDS)
    some = hard_tokens(reference, IDS, labels=labels)
    assert (some[:, :5] == 1).all()
    assert torch.equal(some[:, 5:], whole[:, 5:])
    mask = (torch.arange(10) >= 4).long().expand(4, -1)
    assert (hard_tokens(reference, IDS, mask)[:, :4] == 1).all()


def test_a_reference_of_another_vocabulary_is_named():
    with pytest.raises(ValueError, match=r"input_ids must hold tokens from 0 to 9, got \d+ to \d+"):
        hard_tokens(base(vocab_size=10), IDS)


@pytest.mark.parametrize("max_depth", [2, 3])
def test_the_decider_learns_which_tokens_are_hard_and_nothing_else_changes(max_depth):
    model = freeze(built(max_depth=max_depth)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    depths = 1 + (IDS < 7).long() * (max_depth - 1)  # can be told from the embedding
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 5e-3)
    losses = []
    for _ in range(100):
        loss = decider_loss(model, IDS, depths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("decider.") for name in changed)
    model.threshold = 0.5
    assert torch.equal(model(IDS).depths, depths)


def test_the_deciders_loss_is_the_weighted_cross_entropy_of_what_counts():
    model, labels = built().eval(), IDS.clone()
    labels[:, 1:5] = -100
    depths = 1 + IDS % 2
    logits = model(IDS, depths=1, return_scores=True).scores[:, 4:9, 0]
    hard = (depths[:, 4:9] > 1).float()
    p = logits.sigmoid()
    expected = -(4.8 * hard * p.log() + (1 - hard) * (1 - p).log()).mean()
    torch.testing.assert_close(decider_loss(model, IDS, depths, labels), expected)


def test_a_layer_is_pruned_where_it_is_least_needed():
    model = base()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    # What a layer that adds nothing is worth is known; the others must be worth more to be found out.
    labels = model(IDS).logits.argmax(-1).roll(1, dims=1)
    assert least_needed(model, IDS, labels) == 1
    expected = model(IDS).logits
    prune(model, 1)
    assert model.config.num_hidden_layers == len(model.model.layers) == len(model.config.layer_types) == 2
    torch.testing.assert_close(model(IDS).logits, expected)
    again = wrap(model, top_tokens=8, rank=2, decider_widths=(16,))
    assert again(IDS, depths=2).logits.shape == (4, 10, 20)


def test_layers_that_cannot_be_pruned_are_named():
    with pytest.raises(ValueError, match="layer must be one of the model's 3, and not the only one, got 3"):
        prune(base(), 3)
    with pytest.raises(ValueError, match="not the only one"):
        prune(base(num_hidden_layers=1), 0)
