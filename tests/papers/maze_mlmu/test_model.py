import pytest
import torch

from everyformer.papers.maze_mlmu import PAST, mlm_u_loss

SMALL = {"vocabulary": 12, "dim": 16, "depth": 2, "heads": 2, "hidden": (0, 1)}


def randomised(**options):
    torch.manual_seed(0)
    model = PAST(**{**SMALL, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_what_is_hidden_does_not_matter_and_what_is_visible_does():
    model = randomised()
    tokens = torch.randint(2, 12, (2, 9))
    visible = torch.rand(2, 9) < 0.6
    visible[:, 0] = True
    logits = model.predict(tokens, visible)
    torch.testing.assert_close(model.predict(tokens.masked_fill(~visible, 7), visible), logits)
    assert (model.predict(tokens.masked_fill(visible, 7), visible) - logits).abs().max() > 0.01
    assert (logits[:, 3] - logits[:, 4]).abs().max() > 1e-3  # places ask differently


def test_a_path_is_what_stands_behind_the_prompt():
    model = randomised()
    prompt, path = torch.randint(2, 12, (2, 4)), torch.randint(0, 12, (2, 5))
    tokens = torch.cat([prompt, path], 1)
    torch.testing.assert_close(model(prompt, path), model.predict(tokens, tokens > 1)[:, 4:])


def test_parameters_are_those_of_the_authors_model():
    model = PAST(vocabulary=32, dim=16, depth=3, heads=2)
    layer = 12 * 16**2 + 13 * 16  # maps and their biases, two norms
    assert sum(p.numel() for p in model.parameters()) == 6 * layer + 4 * 16 + 16 + 32 * 16 + 32
    untied = PAST(vocabulary=32, dim=16, depth=3, heads=2, tied=False)
    assert untied.head.weight is not untied.embedding.weight and model.head.weight is model.embedding.weight


def test_it_compiles_and_runs_in_bfloat16():
    model = randomised(depth=1)
    prompt, path = torch.randint(2, 12, (2, 4)), torch.randint(0, 12, (2, 5))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(prompt, path), model(prompt, path))
    half = model.bfloat16()
    assert half(prompt, path).dtype == torch.bfloat16
    loss = mlm_u_loss(half, prompt, path, mask_token=1, rate=0.99)
    loss.backward()
    assert loss.isfinite() and half.question.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "dim must be an even multiple of heads 3, got 16"),
        ({"heads": 16}, "dim must be an even multiple of heads 16, got 16"),
        ({"hidden": (12,)}, r"hidden must be tokens below vocabulary 12, got \(12,\)"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PAST(**{**SMALL, **options})


def test_a_path_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="prompt and path must have at most longest 6 tokens, got 7"):
        randomised(longest=6)(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))
