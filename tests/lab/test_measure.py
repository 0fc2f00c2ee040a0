import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everyformer.catalog import Spread, Threshold
from everyformer.lab import measure


def test_candidates_take_turns():
    order = []
    times = measure.side_by_side({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warmup=1)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_a_forward_pass_records_no_graph():
    layer = torch.nn.Linear(3, 2)
    x = torch.randn(4, 3)
    found = measure.forward_pass(layer, input=x)()
    assert not found.requires_grad
    torch.testing.assert_close(found, layer(x).detach())


def test_a_gradient_pass_starts_from_no_gradients_each_time():
    layer = torch.nn.Linear(3, 1)
    x = torch.randn(4, 3)
    run = measure.gradient_pass(layer, lambda: layer(x).sum())
    run()
    run()
    torch.testing.assert_close(layer.weight.grad, x.sum(0, keepdim=True))


def test_peak_memory_counts_scratch_that_is_freed_again():
    def work():
        scratch = torch.empty(1 << 20)
        del scratch
        return torch.empty(1 << 18)

    peak = measure.peak_extra_bytes(work)
    assert (4 << 20) <= peak < (4 << 20) + 4096


def test_flops_of_a_matrix_product():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert measure.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_interval_is_students():
    spread = measure.spread([1.0, 2.0, 3.0])
    assert spread.mean == 2.0
    assert spread.high == pytest.approx(2.0 + 4.303 / math.sqrt(3))


def test_one_value_has_no_interval():
    assert measure.spread([2.0]) == Spread(2.0, None, None, [2.0])


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_ratio_turns_over_with_the_direction(method, baseline):
    up = measure.effect_of([method], [baseline], "higher", Threshold("ratio", 2))
    down = measure.effect_of([method], [baseline], "lower", Threshold("ratio", 2))
    assert up.mean * down.mean == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "better", "expected"),
    [
        ("relative", "lower", 0.25),
        ("relative", "higher", -0.25),
        ("difference", "lower", 1.0),
        ("bound", "lower", -1.0),
    ],
)
def test_effect_points_to_the_better_side(kind, better, expected):
    effect = measure.effect_of([3.0], [4.0], better, Threshold(kind, 2.0))
    assert effect.mean == pytest.approx(expected)


@pytest.mark.parametrize(
    ("effect", "threshold", "verdict"),
    [
        (Spread(9.0, 8.5, 9.5, [8.9, 9.1]), Threshold("ratio", 8), "reproduced"),
        (Spread(7.0, 6.5, 7.5, [6.9, 7.1]), Threshold("ratio", 8), "direction only"),
        (Spread(9.0, 0.5, 17.5, [3.0, 15.0]), Threshold("ratio", 8), "direction only"),
        (Spread(9.0, None, None, [9.0]), Threshold("ratio", 8), "direction only"),
        (Spread(0.9, 0.8, 1.0, [0.9, 0.9]), Threshold("ratio", 8), "not reproduced"),
        (Spread(0.2, 0.1, 0.3, [0.2, 0.2]), Threshold("difference", 0.1), "reproduced"),
        (Spread(0.2, -0.1, 0.5, [0.1, 0.3]), Threshold("difference", 0.1), "direction only"),
        (Spread(0.01, 0.001, 0.02, [0.01, 0.01]), Threshold("bound", 0.39), "reproduced"),
        (Spread(0.01, -0.001, 0.02, [0.0, 0.02]), Threshold("bound", 0.39), "direction only"),
        (Spread(-0.01, -0.02, -0.001, [-0.01, -0.01]), Threshold("bound", 0.39), "not reproduced"),
    ],
)
def test_verdict_follows_from_the_threshold_alone(effect, threshold, verdict):
    assert measure.verdict_of(effect, threshold) == verdict


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="must pair up"):
        measure.effect_of([1.0], [1.0, 2.0], "higher", Threshold("ratio", 1))


def test_steps_are_measured_once_and_kept(tmp_path):
    file = tmp_path / "folder" / "steps"
    assert measure.noted_steps(file, lambda: 12.6) == 13
    assert measure.noted_steps(file, lambda: 99.0) == 13
    assert measure.noted_steps(tmp_path / "few", lambda: 0.2, at_least=4) == 4
