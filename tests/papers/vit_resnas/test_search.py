import json
import math

import pytest
import torch

from everyformer.papers.vit_resnas import Space, StageSpace, SuperNet, search
from everyformer.papers.vit_resnas.model import stripped
from everyformer.papers.vit_resnas.search import Candidate, Found

SPACE = Space(
    (
        StageSpace((16, 12, 8), (3, 2, 1), 4, (32, 24, 16, 8), 3, (1,)),
        StageSpace((24, 20, 16), (3, 2, 1), 8, (48, 40, 32, 24), 2, (1,)),
    ),
    num_classes=5,
    img_size=16,
    patch=4,
    middle=None,
)
SIZES = {"initial": 8, "rounds": 3, "parents": 4, "mutations": 3, "crossovers": 3}
LIMIT = 120_000


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return SuperNet(SPACE).eval()


def width(network) -> float:
    """A score that a search can climb: wide hidden layers, and a little of what the weights say."""
    hidden = sum(part[2][1] for part in network.definition if part[0] == 1 and part[3])
    return hidden + float(network(torch.ones(1, 3, 16, 16)).sum())


def fails(network) -> float:
    raise RuntimeError("no picture")


def test_candidates_keep_to_the_limit_and_differ(supernet):
    found = search.search(supernet, width, LIMIT, workers=0, **SIZES)
    assert len(found.history) == 8 + 2 * 6
    assert [(one.round, one.index) for one in found.history[6:10]] == [(0, 6), (0, 7), (1, 0), (1, 1)]
    assert all(0.975 * LIMIT <= one.macs == supernet.macs(one.architecture) <= LIMIT for one in found.history)
    assert len({stripped(one.architecture) for one in found.history}) == len(found.history)
    assert found.best.score == max(one.score for one in found.history)
    again = search.search(supernet, width, LIMIT, workers=0, **SIZES)
    assert again == found
    assert search.search(supernet, width, LIMIT, workers=0, seed=1, **SIZES) != found


def test_evolution_climbs_further_than_random_search(supernet):
    sizes = {"initial": 12, "rounds": 5, "parents": 4, "mutations": 6, "crossovers": 6}
    evolved = search.search(supernet, width, LIMIT, workers=0, **sizes).best.score
    assert evolved > search.search(supernet, width, LIMIT, workers=0, initial=60, rounds=1).best.score


@pytest.mark.parametrize("after", [3, 8, 11])
def test_an_interrupted_search_loses_nothing_and_ends_the_same(supernet, tmp_path, after):
    expected = search.search(supernet, width, LIMIT, workers=0, **SIZES)
    calls = []

    def interrupted(network):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(network)
        return width(network)

    file = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        search.search(supernet, interrupted, LIMIT, workers=0, resume=file, **SIZES)
    assert search.load(file).history == expected.history[:after]

    def counted(network):
        calls.append(network)
        return width(network)

    assert search.search(supernet, counted, LIMIT, workers=0, resume=file, **SIZES) == expected
    assert len(calls) == len(expected.history)
    assert search.load(file) == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["search.json"]
    # A finished one can be made longer, and evaluates nothing again.
    longer = search.search(supernet, counted, LIMIT, workers=0, resume=file, **{**SIZES, "rounds": 4})
    assert longer.history[: len(expected.history)] == expected.history
    assert len(calls) == len(longer.history)
    shorter = search.search(supernet, fails, LIMIT, workers=0, resume=file, **{**SIZES, "rounds": 1})
    assert shorter.history == expected.history[:8]


def test_a_file_of_another_search_is_refused(supernet, tmp_path):
    file = tmp_path / "search.json"
    search.search(supernet, width, LIMIT, workers=0, resume=file, initial=2, rounds=1)
    assert json.loads(file.read_text())["settings"]["seed"] == 0
    with pytest.raises(ValueError, match="a search of other max_macs, seed"):
        search.search(supernet, width, LIMIT + 1, workers=0, resume=file, seed=3, initial=2, rounds=1)
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="a search of other weights"):
        search.search(SuperNet(SPACE), width, LIMIT, workers=0, resume=file, initial=2, rounds=1)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is not a file of a search"):
        search.search(supernet, width, LIMIT, workers=0, resume=file, initial=2, rounds=1)


def test_processes_give_what_one_process_gives(supernet, tmp_path):
    sizes = {"initial": 4, "rounds": 2, "parents": 2, "mutations": 1, "crossovers": 1}
    alone = search.search(supernet, width, LIMIT, workers=0, **sizes)
    spread = search.search(supernet, width, LIMIT, workers=2, resume=tmp_path / "search.json", **sizes)
    assert [one.architecture for one in spread.history] == [one.architecture for one in alone.history]
    assert [one.score for one in spread.history] == pytest.approx([one.score for one in alone.history], abs=1e-4)


def test_ray_gives_what_one_process_gives(supernet):
    ray = pytest.importorskip("ray")
    sizes = {"initial": 2, "rounds": 1}
    alone = search.search(supernet, width, LIMIT, workers=0, **sizes)
    spread = search.search(supernet, width, LIMIT, workers=1, engine="ray", **sizes)
    assert [one.architecture for one in spread.history] == [one.architecture for one in alone.history]
    assert [one.score for one in spread.history] == pytest.approx([one.score for one in alone.history], abs=1e-4)
    assert not ray.is_initialized()


def test_the_pareto_front_and_its_plot(tmp_path):
    entries = [(3, 1.0), (1, 0.5), (2, 0.4), (2, 0.8), (4, 0.9), (3, 0.9)]
    found = Found(tuple(Candidate(0, i, (), cost, score) for i, (cost, score) in enumerate(entries)))
    assert [(one.macs, one.score) for one in found.pareto] == [(1, 0.5), (2, 0.8), (3, 1.0)]
    assert found.best.index == 0
    assert found.plot(tmp_path / "pareto.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_macs": 10}, r"max_macs must be from 31,088 \(smallest network\) to 187,296 \(largest\), got 10"),
        ({"max_macs": 1e12}, "max_macs must be from"),
        ({"initial": 0}, "initial and rounds must be at least 1"),
        ({"parents": 1}, "parents must be from 2 to initial=8, got 1"),
        ({"parents": 9}, "parents must be from 2 to initial=8, got 9"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"engine": "threads"}, "engine must be 'processes' or 'ray'"),
        ({"evaluate": lambda network: math.nan}, "evaluate gave nan for"),
    ],
)
def test_what_does_not_fit_is_named(supernet, options, message):
    with pytest.raises(ValueError, match=message):
        search.search(supernet, **{"evaluate": width, "max_macs": LIMIT, "workers": 0, **SIZES, **options})


def test_a_limit_between_the_networks_costs_is_told():
    single = StageSpace((8,), (1,), 4, (32, 8), 1)
    tiny = SuperNet(Space((single,), 5, 16, 4, 3, None))
    smallest, largest = (tiny.macs(network) for network in (tiny.space.smallest, tiny.space.largest))
    with pytest.raises(ValueError, match="is met by none"):
        search.search(tiny, width, (smallest + largest) // 2, workers=0, initial=1, rounds=1)


def test_duplicates_are_let_in_when_nothing_else_is_left():
    single = StageSpace((8,), (1,), 4, (32, 31), 1)
    tiny = SuperNet(Space((single,), 5, 16, 4, 3, None)).eval()
    found = search.search(tiny, width, tiny.macs(tiny.space.largest), workers=0, initial=4, rounds=1)
    assert len(found.history) == 4
