import math

import pytest
import torch

import everyformer
from everyformer.catalog import Job
from everyformer.lab import data
from everyformer.papers.after_transformers import bench, claim

CARD = everyformer.paper("after_transformers")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path_factory.getbasetemp() / "after_transformers")


def run(name, folder):
    found = getattr(claim, CARD.claim(name).run)(Job("smoke", 0, "cpu", folder))
    assert found.series
    assert all(math.isfinite(value) for value in (found.method, found.baseline, *found.extras.values()))
    return found


def test_both_mixers_are_scored_on_every_task(tmp_path):
    found = run("alternatives", tmp_path)
    lost = [
        found.extras[f"accuracy (%), {task}, full attention"] - found.extras[f"accuracy (%), {task}, Mamba-2"]
        for task in claim.TASKS
    ]
    assert found.method == pytest.approx(sum(lost) / 2) and found.baseline == 0
    for name in claim.TITLES.values():
        assert all(0 <= found.extras[f"accuracy (%), {task}, {name}"] <= 100 for task in claim.TASKS)


def test_the_better_rate_is_chosen_by_samples_that_are_not_tested(tmp_path, monkeypatch):
    monkeypatch.setitem(claim.RATES, "smoke", (0.0, 2e-3))  # the first learns nothing
    _, rate = claim._best(Job("smoke", 0, "cpu", tmp_path), "full", "chars")
    assert rate == 2e-3


def test_what_recurrent_mixers_keep_does_not_grow_and_what_attention_keeps_does(tmp_path):
    found = run("constant_state", tmp_path)
    kept = found.series[1].lines
    for name in claim.RECURRENT:
        assert kept[name][1][0] == kept[name][1][-1] > 0
    assert kept["full attention"][1][-1] == pytest.approx(16 * kept["full attention"][1][0])
    assert found.method == max(found.extras[f"growth of the time, {name}"] for name in claim.RECURRENT)


def test_tokens_are_written_after_the_same_ones_every_time():
    seen = []
    mixer = claim.FullAttention(8, heads=2, causal=True).eval()
    mixer.register_forward_hook(lambda _, args, given, out: seen.append(given["cache"]["tokens"]), with_kwargs=True)
    with torch.no_grad():
        cache = {}
        mixer(torch.randn(1, 6, 8), cache=cache)
        write = claim._writing(mixer, torch.randn(1, 1, 8), cache, 3)
        write()
        write()
    assert seen == [6, 7, 8, 9, 10, 8, 9, 10]


def test_connections_leave_nothing_and_gates_a_lot(tmp_path):
    found = run("duality", tmp_path)
    assert found.method < 1e-12 and found.baseline > 0.1
    assert found.extras["rank of what the second half hears of the first, Mamba-2"] <= 8
    assert found.extras["rank of what the second half hears of the first, softmax attention"] > 8


def test_plans_are_of_the_larger_networks():
    for name in ("alternatives", "constant_state", "duality"):
        plan = getattr(claim, f"plan_{name}")()
        assert plan.parameters > 1e6 and plan.flops > 1e11 and name in plan.launch


def test_the_benchmark_times_the_same_work():
    pytest.importorskip("transformers")
    cases = list(bench.cases(quick=True, device="cpu"))
    assert len(cases) == 6
    for case in cases:
        case.ours()
        for peer in case.peers.values():
            peer()


def test_training_in_the_benchmark_gives_gradients():
    layer = torch.nn.Linear(4, 4)
    bench._training(layer, torch.randn(2, 4))()
    assert layer.weight.grad is not None
