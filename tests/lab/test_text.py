import pytest
import torch
from torch import nn

from everyformer.lab import data, text


def test_corpora_are_bytes_that_do_not_overlap():
    made_up = text.corpus("made_up")
    assert bytes(made_up.train[:20].tolist()).decode().isascii()
    assert len(made_up.train) == 9 * (len(made_up.train) + len(made_up.test)) // 10
    assert made_up.train.dtype == torch.int64
    assert int(made_up.train.max()) < text.BYTES


def test_windows_are_pieces_of_the_text_and_depend_on_the_seed_alone():
    line = torch.arange(1_000)
    first, again = (list(text.windows(line, length=8, batch=4, seed=3, count=2)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (4, 9)
    assert (first[0].diff(dim=1) == 1).all()
    assert not torch.equal(first[0], first[1])
    with pytest.raises(ValueError, match="text must be longer than length 8, got 8 bytes"):
        next(text.windows(line[:8], length=8))


def test_the_loss_of_a_model_that_knows_nothing():
    class Uniform(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(text.BYTES))

        def forward(self, ids):
            return self.bias.expand(*ids.shape, -1)

    model = Uniform().train()
    expected = torch.tensor(256.0).log().item()
    assert text.evaluate(model, text.corpus("made_up").test, length=16) == pytest.approx(expected)
    assert model.training


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_model_is_pretrained_once(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    test = text.corpus("made_up").test
    torch.manual_seed(0)
    before = text.evaluate(text.build(kind, width=32, layers=2, heads=2), test, pieces=8)
    model = text.pretrained(kind, scale="smoke", seed=0)
    after = text.evaluate(model, test, pieces=8)
    assert after < before - 0.5

    def refuse(*arguments, **options):
        raise AssertionError("trained twice")

    monkeypatch.setattr(text, "fit", refuse)
    again = text.pretrained(kind, scale="smoke", seed=0)
    assert text.evaluate(again, test, pieces=8) == after
    with pytest.raises(AssertionError, match="trained twice"):
        text.pretrained(kind, scale="smoke", seed=1)


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="kind must be gpt or llama, got 'rnn'"):
        text.build("rnn")
