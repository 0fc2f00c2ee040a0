import statistics

import pytest
import torch

from everyformer.lab import mixing_samples as samples
from everyformer.lab import text
from everyformer.lab.mixing_samples import NOTHING, PADDING


def drawn(given, samples=50, seed=0, test=False):
    return given.draw(torch.Generator().manual_seed(seed), samples, test)


def value_of(tokens):
    """What a list of ListOps is worth, by a stack."""
    stack = [[]]
    for token in tokens:
        if 10 <= token < 14:
            stack.append([token])
        elif token == samples.CLOSE:
            operator, *arguments = stack.pop()
            name = samples.OPERATORS[operator - 10]
            worth = {"MAX": max, "MIN": min, "MED": statistics.median_low, "SUM": lambda a: sum(a) % 10}[name]
            stack[-1].append(worth(arguments))
        else:
            stack[-1].append(token)
    assert len(stack) == 1 and len(stack[0]) == 1
    return stack[0][0]


def test_every_name_that_is_asked_for_was_given_its_value_before():
    tokens, targets = drawn(samples.recall(64, pairs=8))
    assert (targets != NOTHING).sum(1).eq(24).all()
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        known = dict(zip(row[0:16:2], row[1:16:2], strict=True))
        assert len(known) == 8
        asked = [(name, value) for name, value in zip(row, wanted, strict=True) if value != NOTHING]
        assert all(known[name] == 16 + value for name, value in asked)


def test_values_of_lists_are_those_of_a_stack_machine():
    given = samples.listops(128)
    tokens, targets = drawn(given, 200)
    assert given.title.endswith("3 deep") and tokens.shape == (200, 128)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        written = [token for token in row if token != PADDING]
        assert row[len(row) - len(written) :] == written  # padding stands in front
        assert value_of(written) == wanted[-1] and set(wanted[:-1]) == {NOTHING}
    assert targets[:, -1].unique().tolist() == list(range(10))


def test_plays_are_read_byte_by_byte_and_tested_on_what_is_not_trained_on():
    given = samples.chars(text.Text(torch.arange(0, 100), torch.arange(100, 200)), 16)
    tokens, targets = drawn(given)
    assert (targets == tokens + 1).all() and targets.max() < 100
    assert drawn(given, test=True)[0].min() >= 100


def test_digits_become_greys_row_by_row():
    images = torch.zeros(10, 28, 28, dtype=torch.uint8)
    images[:, :4, :4] = 255  # one of 7 x 7 pixels
    given = samples.pixels((images, torch.arange(10)), (images, torch.arange(10)), 7)
    tokens, targets = drawn(given)
    assert (tokens[:, 0] == 15).all() and (tokens[:, 1:] == 0).all()
    assert (targets[:, :-1] == NOTHING).all() and targets[:, -1].max() <= 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samples.recall(16, 8), "length must be at least 4 times pairs"),
        (lambda: samples.listops(5), "length must be at least 6, got 5"),
        (lambda: samples.pixels((torch.zeros(1, 28, 28),) * 2, (torch.zeros(1, 28, 28),) * 2, 5), "side must divide"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
