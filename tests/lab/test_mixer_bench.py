import dataclasses
import json

import pytest
import torch

from everyformer import mixers
from everyformer.lab import data, environment, mixer_bench, mixer_table
from everyformer.lab.mixer_bench import QUICK, Settings
from everyformer.lab.mixer_table import NO_ROOM, Accuracy, Speed, Table

SPEED_ONLY = dataclasses.replace(QUICK, tasks=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path / "cache")


def table(**changed):
    facts = {
        "device": "a machine",
        "kind": "cpu",
        "dim": 32,
        "heads": 2,
        "scale": "cpu",
        "versions": {},
        "commit": "",
        "created": "",
    }
    return Table(**{**facts, **changed})  # fmt: skip


def test_everything_of_a_mixer_is_measured_and_kept(tmp_path):
    file = tmp_path / "mixers.json"
    found = mixer_bench.measure(file, settings=QUICK, names=("full",))
    assert found.device == environment.device_name("cpu") and found.kind == "cpu"
    assert {(row.causal, row.length) for row in found.speed} == {(c, n) for c in (False, True) for n in (64, 128)}
    for row in found.speed:
        assert 0 < row.forward < row.training and 0 < row.memory < row.training_memory
        assert (row.token is not None) == row.causal
    assert {row.task for row in found.accuracy} == {"recall", "listops", "chars", "pixels"}
    assert all(0 <= row.accuracy <= 100 and row.parameters > 0 for row in found.accuracy)
    assert mixer_table.load([file]) == [found]


def test_what_is_known_is_not_measured_again(tmp_path, monkeypatch):
    file, measured = tmp_path / "mixers.json", []
    original = mixer_bench._measured

    def fail_at_third(name, causal, length, *rest):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append((causal, length))
        return original(name, causal, length, *rest)

    monkeypatch.setattr(mixer_bench, "_measured", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        mixer_bench.measure(file, settings=SPEED_ONLY, names=("full",))
    kept = mixer_table.load([file])[0].speed
    assert [(row.causal, row.length) for row in kept] == [(False, 64), (False, 128)]
    monkeypatch.setattr(mixer_bench, "_measured", original)
    found = mixer_bench.measure(file, settings=SPEED_ONLY, names=("full",))
    assert [(row.causal, row.length) for row in found.speed] == [(c, n) for c in (False, True) for n in (64, 128)]
    assert [row.memory for row in found.speed[:2]] == [row.memory for row in kept]
    again = file.read_bytes()
    assert mixer_bench.measure(file, settings=SPEED_ONLY, names=("full",)).speed == found.speed
    assert file.read_bytes() == again


@pytest.mark.parametrize(("limits", "reason"), [({"seconds": 1e-9}, "time: about"), ({"bytes": 1.0}, "memory: about")])
def test_a_mixer_is_stopped_where_it_is_foreseen_to_exceed_a_limit(limits, reason):
    settings = dataclasses.replace(SPEED_ONLY, lengths=(16, 32, 64), **limits)
    rows = list(mixer_bench.speeds("full", True, settings, "cpu"))
    assert rows[0].forward and not rows[0].stopped
    assert all(row.forward is None and row.stopped.startswith(reason) for row in rows[1:])


def test_a_mixer_that_finds_no_memory_is_stopped_and_other_errors_are_not_hidden(monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    monkeypatch.setattr(mixer_bench, "_built", fail)
    assert [row.stopped for row in mixer_bench.speeds("full", False, SPEED_ONLY, "cpu")] == [NO_ROOM] * 2
    monkeypatch.setattr(mixer_bench, "_built", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        list(mixer_bench.speeds("full", False, SPEED_ONLY, "cpu"))


@pytest.mark.parametrize("name", sorted(mixers.cards()))
def test_every_mixer_can_be_measured_each_way_its_card_says(name):
    card = mixers.cards()[name]
    for causal in (False, True):
        if mixer_bench.can(card, causal):
            (row,) = mixer_bench.speeds(name, causal, dataclasses.replace(SPEED_ONLY, lengths=(64,)), "cpu")
            assert row.forward and row.training and row.memory is not None
            assert (row.token is not None) == (row.token_memory is not None) == (causal and card.cache)


def test_a_pass_is_measured_where_only_training_is_too_much():
    settings = dataclasses.replace(SPEED_ONLY, lengths=(64, 256))
    first = list(mixer_bench.speeds("full", True, dataclasses.replace(settings, lengths=(64,)), "cpu"))
    between = 4**2 * (first[0].training_memory + first[0].memory) / 2  # its card says that it grows with the square
    (row,) = mixer_bench.speeds("full", True, dataclasses.replace(settings, bytes=between), "cpu", first)
    assert row.forward and row.memory and row.token and row.training is None
    assert "for a training step of 256 tokens" in row.stopped
    later = dataclasses.replace(settings, lengths=(512,))
    (after,) = mixer_bench.speeds("full", True, later, "cpu", [*first, row])
    assert after.forward and after.training is None and after.stopped == row.stopped


def test_a_mixer_that_cannot_be_built_is_stopped_and_the_others_are_measured(tmp_path):
    settings = dataclasses.replace(SPEED_ONLY, heads=1, lengths=(64,))
    found = mixer_bench.measure(tmp_path / "mixers.json", settings=settings, names=("strided", "fnet"))
    assert ["heads must be at least 2" in row.stopped for row in found.speed] == [True, True, False]
    assert found.speed[2].forward


def test_a_token_takes_what_its_cache_holds():
    settings = dataclasses.replace(SPEED_ONLY, lengths=(64, 1024))
    small, large = mixer_bench.speeds("ssd", True, settings, "cpu")
    assert large.token_memory == small.token_memory < large.memory  # a state of one size
    small, large = mixer_bench.speeds("full", True, settings, "cpu")
    assert large.token_memory > 8 * small.token_memory >= 8 * 2 * 64 * 32 * 4  # keys and values of every token
    assert mixer_bench.kept_bytes({"a": (torch.zeros(2), [torch.zeros(3)]), "tokens": 7}) == 20


def test_each_cell_is_timed_twice_and_the_faster_counts(tmp_path, monkeypatch):
    figures = {1: 3.0, 2: 2.0, 3: 5.0, 4: 4.0}
    visits = []

    def seconds(step, *_):
        visits.append(step)
        return figures[len(visits)]

    monkeypatch.setattr(mixer_bench, "_seconds", seconds)
    settings = dataclasses.replace(SPEED_ONLY, lengths=(64,))
    (row,) = mixer_bench.measure(tmp_path / "mixers.json", settings=settings, names=("fnet",)).speed
    assert visits == ["forward", "training"] * 2
    assert (row.forward, row.training, row.visits) == (3.0, 2.0, 2)


def test_what_is_measured_again_says_when_and_by_which_code(tmp_path, monkeypatch):
    file, settings = tmp_path / "mixers.json", dataclasses.replace(SPEED_ONLY, lengths=(64,))
    monkeypatch.setattr(environment, "commit", lambda: "first")
    before = mixer_bench.measure(file, settings=settings, names=("fnet", "linformer"))
    monkeypatch.setattr(environment, "commit", lambda: "second")
    mixer_bench.measure(file, settings=settings, names=("fnet",), again=True)
    (found,) = mixer_table.load([file])
    assert found.commit == "first" and [row.mixer for row in found.speed] == ["fnet", "linformer"]
    assert [found.runs[row.run]["commit"] for row in found.speed] == ["second", "first"]
    mixer_table.save(before, file)  # a process that does not know of it yet takes nothing back
    assert mixer_table.load([file])[0].speed == found.speed


def test_a_table_without_what_is_known_of_later_ones_is_read_and_gone_on_with(tmp_path):
    file, settings = tmp_path / "mixers.json", dataclasses.replace(SPEED_ONLY, lengths=(64, 128))
    (row,) = mixer_bench.speeds("fnet", False, dataclasses.replace(settings, lengths=(64,)), "cpu")
    content = dataclasses.asdict(table(device=environment.device_name("cpu"), scale="smoke", speed=[row], commit="old"))
    del content["runs"]
    for name in ("token_memory", "visits", "run"):
        del content["speed"][0][name]
    file.write_text(json.dumps({"tables": [content]}))
    found = mixer_bench.measure(file, settings=settings, names=("fnet",))
    assert [(one.length, one.visits, bool(one.run)) for one in found.speed] == [(64, 0, False), (128, 2, True)]
    assert found.speed[0].forward == row.forward and found.commit == "old"


def test_tables_of_other_machines_and_widths_stay(tmp_path):
    file = tmp_path / "mixers.json"
    mixer_table.save(table(), file)
    mixer_table.save(table(device="another"), file)
    mixer_table.save(table(dim=64, speed=[Speed("full", True, 8, 1.0)]), file)
    mixer_table.save(table(commit="later"), file)
    found = mixer_table.load([file])
    known = {(one.device, one.dim): one.commit for one in found}
    assert len(found) == 3
    assert known == {("a machine", 32): "later", ("another", 32): "", ("a machine", 64): ""}
    assert found[1].speed == [Speed("full", True, 8, 1.0)]


def test_rows_that_another_process_has_written_stay(tmp_path):
    file = tmp_path / "mixers.json"
    scored = Accuracy("full", "recall", 8, 90.0, 10.0, 1.0, 100)
    mixer_table.save(table(speed=[Speed("full", True, 8, 1.0)], accuracy=[scored]), file)
    mixer_table.save(table(speed=[Speed("full", True, 8, 2.0), Speed("full", True, 16, 3.0)]), file)
    (found,) = mixer_table.load([file])
    assert [row.forward for row in found.speed] == [2.0, 3.0] and found.accuracy == [scored]


def test_the_shipped_file_is_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    assert mixer_table.shipped_file().parent.name == "benchmarks"
    assert mixer_table.file_to_fill() == mixer_table.shipped_file()
    monkeypatch.setattr(mixer_table, "_checkout", lambda: tmp_path / "nowhere")
    monkeypatch.setattr(mixer_table, "own_file", lambda: tmp_path / "mixers.json")
    assert mixer_table.shipped_file().parts[-3:] == ("everyformer", "_benchmarks", "mixers.json")
    assert mixer_table.file_to_fill() == tmp_path / "mixers.json"


def test_weights_count_as_memory():
    assert Speed("full", True, 8, 1.0, memory=10.0, training_memory=30.0, weights=5.0).bytes("forward") == 15.0
    assert Speed("full", True, 8, 1.0, memory=10.0, training_memory=30.0, weights=5.0).bytes("training") == 35.0
    assert Speed("full", True, 8, weights=5.0).bytes("forward") is None


def test_of_two_files_the_first_counts(tmp_path):
    mixer_table.save(table(commit="own"), tmp_path / "own.json")
    mixer_table.save(table(commit="shipped"), tmp_path / "shipped.json")
    found = mixer_table.load([tmp_path / "own.json", tmp_path / "missing.json", tmp_path / "shipped.json"])
    assert [one.commit for one in found] == ["own"]


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"tables": [{"device": "x"}]}), json.dumps({"results": []})])
def test_a_file_that_holds_no_table_is_named(tmp_path, content):
    file = tmp_path / "mixers.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"mixers\.json holds no measurements of mixers"):
        mixer_table.load([file])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda file: mixer_bench.measure(file, names=("ful",)), "did you mean full"),
        (lambda file: mixer_bench.measure(file, device="cud"), "device must be one of cpu"),
        (lambda file: mixer_bench.measure(file, settings=Settings(dim=30)), "dim must be a multiple of heads"),
        (lambda file: Settings(lengths=(512, 256)), "lengths must be rising"),
        (lambda file: Settings(lengths=(), tasks=False), "nothing is left to measure"),
        (lambda file: Settings(rounds=0), "rounds must be above 0, got 0"),
    ],
)
def test_bad_input_is_refused(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "mixers.json")
