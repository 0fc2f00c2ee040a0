import pytest

from everyformer.catalog import Job
from everyformer.papers.faster_lighter import PAPER, claim


def run(name, folder):
    return getattr(claim, name)(Job("smoke", 0, "cpu", folder))


@pytest.mark.parametrize(
    ("ours", "full", "found"),
    [
        ([2, 2, 2], [1, 4, 16], 100 * 2**0.5),
        ([1, 1, 1], [2, 2, 2], 100.0),
        ([4, 4, 4], [2, 2, 2], 800.0),
        ([1, 4, 1], [2, 2, 2], 200 * 2**0.5),
    ],
)
def test_a_crossing_is_where_a_method_becomes_faster_for_good(ours, full, found):
    assert claim.crossing((100, 200, 400), ours, full) == pytest.approx(found)


def test_every_cheaper_mixer_has_a_crossing(tmp_path):
    found = run("crossover", tmp_path)
    named = {name for name in found.extras if name.startswith("faster from")}
    assert len(named) == len(claim.cheaper()) > 3
    assert all(128 <= found.extras[name] <= 512 for name in named)
    lines = set(found.series[0].lines)
    assert {"full", "full, causal"} < lines <= {"full", "full, causal", *(card.name for card in claim.cheaper())}


def test_short_lengths_are_timed_for_all(tmp_path):
    found = run("short", tmp_path)
    assert found.method > 0 and found.baseline > 0
    assert len(found.extras) == len(claim.cheaper())


def test_reversible_blocks_need_less_and_compute_the_same(tmp_path):
    found = run("reversible", tmp_path)
    assert found.method < found.baseline
    for name in ("reversible", "checkpointed"):
        assert found.extras[f"largest difference of a gradient, {name}"] < 1e-3
        assert found.extras[f"seconds of a step, {name}"] > 0
    assert found.extras["peak (MB), checkpointed"] < found.baseline


def test_all_mixers_recall_at_equal_parameters(tmp_path, cache):
    found = run("retrieval", tmp_path)
    sizes = [value for name, value in found.extras.items() if name.startswith("parameters")]
    assert len(sizes) == 3 and max(sizes) < 1.05 * min(sizes)
    assert {found.extras[name] for name in found.extras if name.startswith("rate")} <= set(claim.RATES)
    again = run("retrieval", tmp_path)  # from the cache
    assert (again.method, again.baseline, again.extras) == (found.method, found.baseline, found.extras)


@pytest.mark.parametrize("name", [one.name for one in PAPER.claims])
def test_the_size_of_the_paper_is_planned(name):
    plan = getattr(claim, PAPER.claim(name).plan)()
    assert plan.parameters > 0 and plan.flops > 0 and plan.memory_bytes > 0 and "faster_lighter" in plan.launch
