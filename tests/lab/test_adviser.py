import dataclasses
import math

import pytest

from everyformer import mixers
from everyformer.lab import adviser, adviser_display
from everyformer.lab.adviser import Wish
from everyformer.lab.mixer_table import NO_ROOM, Accuracy, Speed, Table

LENGTHS = (256, 1024, 4096)


def row(mixer, causal, length, seconds, memory=1e6):
    return Speed(mixer, causal, length, seconds, 3 * seconds, 1e-4 if causal else None, memory, 3 * memory)


def table(**changed):
    """Full attention grows with the square and is right; linear attention grows in a line and is half right."""
    full = [row("full", causal, n, 1e-8 * n**2, 1e3 * n) for n in LENGTHS for causal in (False, True)]
    linear = [row("linear", causal, n, 5e-6 * n, 1e3 * n) for n in LENGTHS for causal in (False, True)]
    slower = [row("fnet", False, n, 9e-6 * n, 9e3 * n) for n in LENGTHS]
    right = [
        Accuracy(mixer, task, 64, share, 10.0, 1.0, 100)
        for mixer, share in (("full", 100.0), ("linear", 55.0), ("fnet", 40.0))
        for task in ("recall", "listops", "chars", "pixels")
        if (mixer, task) != ("fnet", "chars")
    ]
    facts = {
        "device": "a machine", "kind": "cpu", "dim": 128, "heads": 4, "scale": "cpu", "versions": {}, "commit": "",
        "created": "", "speed": full + linear + slower, "accuracy": right,
    }  # fmt: skip
    return Table(**{**facts, **changed})


def by_name(advice):
    return {one.card.name: one for one in advice}


def test_power_laws_are_met_between_lengths_and_beyond_them():
    points = [(n, 1e-8 * n**2) for n in LENGTHS]
    for length, place in ((512, "between"), (4096, "measured"), (16384, "beyond")):
        found = adviser.predict(points, length, growth=1.0)
        assert found.value == pytest.approx(1e-8 * length**2) and found.place == place
    assert adviser.predict(points[:1], 512, growth=2.0).value == pytest.approx(1e-8 * 512**2)
    with pytest.raises(ValueError, match="at least one measured length"):
        adviser.predict([], 512, growth=1.0)


def test_below_the_shortest_length_its_figure_is_the_most_it_can_be():
    for points in ([(256, 1.0), (1024, 20.0)], [(256, 1.0)]):
        found = adviser.predict(points, 1, growth=2.0)
        assert found.value == pytest.approx(1.0) and found.place == "below"
    wish = Wish(16, latency=1e-4, memory=1e5)
    full = by_name(adviser.advise(table(), wish))["full"]
    assert full.seconds.value == pytest.approx(1e-8 * 256**2) and full.against == (
        "may be too slow",
        "may be too large",
    )
    assert adviser_display.figure_of(full.seconds, "seconds") == "≤655 µs"
    assert any("≤ at most" in line for line in adviser_display.notes([full], wish, table()))


def test_bent_lines_are_followed_piece_by_piece():
    points = [(100, 1.0), (1000, 1.0), (10000, 100.0)]
    assert adviser.predict(points, 300, growth=1.0).value == pytest.approx(1.0)
    assert adviser.predict(points, 3162, growth=1.0).value == pytest.approx(10, rel=0.01)


def test_the_error_is_that_of_lengths_left_out():
    exact = adviser.left_out(table())
    assert exact["inside"].worst == pytest.approx(1) and exact["beyond"].worst == pytest.approx(1)
    assert exact["inside"].count == 5 and exact["beyond"].count == 5
    bent = [row("full", False, n, seconds) for n, seconds in ((256, 1.0), (1024, 2.0), (4096, 1.0))]
    missed = adviser.left_out(table(speed=bent))
    assert missed["inside"].median == pytest.approx(2) and missed["beyond"].median == pytest.approx(4)
    assert adviser.left_out(table(speed=bent[:2])) == {}
    assert "not known" in adviser_display.errors_in_words({})
    assert "between lengths 100% (worst 100%, 1 left out)" in adviser_display.errors_in_words(missed)


def test_exponents_are_fitted_to_the_longest_lengths():
    powers = adviser.exponents(table(), "forward")
    assert powers["full", False] == pytest.approx(2) and powers["linear", True] == pytest.approx(1)
    flat = [row("full", False, 2**power, 1.0) for power in range(4)]
    steep = [row("full", False, 2**power, 2.0 ** (power - 3)) for power in range(4, 7)]
    assert adviser.exponents(table(speed=flat + steep), "forward") == {("full", False): pytest.approx(1)}
    assert adviser.exponents(table(speed=flat[:2]), "forward") == {}
    advice = adviser.advise(table(), Wish(512))
    assert adviser_display.power_of(by_name(advice)["full"].exponent) == "2.0"
    assert adviser_display.power_of(by_name(advice)["window"].exponent) == "–"
    assert any("n^ is the power" in line for line in adviser_display.notes(advice, Wish(512), table()))
    said = adviser_display.exponents_in_words(table())
    assert said[0] == (
        "Time of a forward step grows with the tokens to the power of: full 2.0, full causal 2.0, linear 1.0, "
        "linear causal 1.0, fnet 1.0"
    )
    assert said[2].endswith("of: full causal 0.0, linear causal 0.0")


def test_who_fits_comes_first_and_the_most_accurate_of_them():
    advice = adviser.advise(table(), Wish(2048))
    assert [one.card.name for one in advice[:3]] == ["full", "linear", "fnet"]
    found = by_name(advice)
    assert found["full"].quality == pytest.approx(1) and found["linear"].quality == pytest.approx(0.5)
    assert found["full"].best and found["linear"].best and not found["fnet"].best  # slower and worse than linear
    assert all(one.against == ("not measured",) for one in advice[3:] if one.card.causal != "only")


@pytest.mark.parametrize(
    ("wish", "name", "against"),
    [
        (Wish(4096, latency=0.05), "full", ("too slow",)),
        (Wish(4096, memory=5e6), "fnet", ("too large",)),
        (Wish(4096, memory=5e6, latency=0.03), "fnet", ("too slow", "too large")),
        (Wish(4096, causal=True), "fnet", ("cannot be causal",)),
        (Wish(4096), "rwkv", ("is causal only",)),
        (Wish(4096, step="token", causal=True), "fnet", ("cannot be causal",)),
    ],
)
def test_what_speaks_against_a_mixer_is_said(wish, name, against):
    assert by_name(adviser.advise(table(), wish))[name].against == against


@pytest.mark.parametrize(
    ("tokens", "reason", "against"),
    [
        (8192, NO_ROOM, ("no memory for 8,192 tokens",)),
        (16384, NO_ROOM, ("no memory for 8,192 tokens",)),
        (16384, "time: about 9 s", ()),
        (4096, NO_ROOM, ()),
    ],
)
def test_where_a_mixer_was_stopped_is_said_and_memory_speaks_against_it(tokens, reason, against):
    stopped = [Speed("full", False, length, stopped=reason) for length in (8192, 16384)]
    known, wish = table(speed=[*table().speed, *stopped]), Wish(tokens)
    advice = adviser.advise(known, wish)
    assert by_name(advice)["full"].against == against and (advice[0].card.name == "full") == (not against)
    said = f"full was stopped at 8,192 tokens ({reason})"
    assert (said in adviser_display.notes(advice, wish, known)) == (tokens > 4096)


def test_the_settings_that_accuracy_is_of_are_told():
    notes = "\n".join(adviser_display.notes(adviser.advise(table(), Wish(512)), Wish(512), table()))
    assert "narrower windows" in notes and "Recall was read causally" in notes
    bare = table(accuracy=[])
    assert "Recall" not in "\n".join(adviser_display.notes(adviser.advise(bare, Wish(512)), Wish(512), bare))


def test_orders_by_latency_and_memory():
    wish = Wish(4096, order="latency")
    assert adviser.advise(table(), wish)[0].card.name == "linear"
    assert adviser.advise(table(), dataclasses.replace(wish, order="memory"))[2].card.name == "fnet"
    assert adviser.advise(table(), Wish(256, order="latency"))[0].card.name == "full"


def test_tasks_that_not_all_can_do_count_only_where_they_have_to():
    found = by_name(adviser.advise(table(), Wish(1024)))
    assert found["fnet"].quality == pytest.approx(1 / 3)
    some = [accuracy for accuracy in table().accuracy if accuracy.task != "recall" or accuracy.mixer != "linear"]
    assert by_name(adviser.advise(table(accuracy=some), Wish(1024)))["linear"].quality is None


def test_training_and_token_have_their_own_figures():
    training = by_name(adviser.advise(table(), Wish(1024, step="training")))["full"]
    assert training.seconds.value == pytest.approx(3e-8 * 1024**2) and training.bytes.value == pytest.approx(3e3 * 1024)
    token = by_name(adviser.advise(table(), Wish(1024, causal=True, step="token")))["full"]
    assert token.seconds.value == pytest.approx(1e-4)


def test_a_token_is_not_judged_by_the_memory_of_a_pass():
    wish = Wish(1024, causal=True, step="token", memory=1e4)
    advice = adviser.advise(table(), wish)
    assert by_name(advice)["full"].bytes is None and by_name(advice)["full"].against == ()
    assert any("Memory for a token was not measured" in line for line in adviser_display.notes(advice, wish, table()))
    known = [dataclasses.replace(one, token_memory=one.length * 1e2) for one in table().speed]
    advice = adviser.advise(table(speed=known), wish)
    assert by_name(advice)["full"].bytes.value == pytest.approx(102400)
    assert by_name(advice)["full"].against == ("too large",)
    assert not any("not measured" in line for line in adviser_display.notes(advice, wish, table()))


def test_the_table_of_this_machine_is_taken_and_another_one_is_told():
    tables = [table(device="another"), table(device="this", scale="smoke"), table(device="this")]
    chosen, here = adviser.choose(tables, device="this", kind="cpu")
    assert chosen is tables[2] and here
    chosen, here = adviser.choose(tables[:2], device="this", kind="cpu")
    assert chosen is tables[0] and not here
    said = adviser_display.notes(adviser.advise(chosen, Wish(512)), Wish(512), chosen, "this")
    assert "Measured on another, not on this device (this)" in said[0] and "everyformer bench mixers" in said[0]


@pytest.mark.parametrize(
    ("tables", "asked", "message"),
    [
        ([], {}, "nothing was measured on cpu; measure here with: everyformer bench mixers --device cpu"),
        ([table()], {"kind": "cuda"}, "nothing was measured on cuda"),
        ([table()], {"dim": 256}, "only dim 128 with 4 heads was measured on cpu.*--dim 256"),
    ],
)
def test_where_nothing_was_measured_the_command_is_named(tables, asked, message):
    with pytest.raises(ValueError, match=message):
        adviser.choose(tables, **{"device": "a machine", "kind": "cpu", **asked})


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4e9), ("512 MiB", 512 * 2**20), ("1.5gb", 1.5e9), ("100B", 100), ("2TiB", 2 * 2.0**40), ("3kb", 3e3)],
)
def test_sizes_are_read(text, size):
    assert adviser.parse_bytes(text) == pytest.approx(size)


@pytest.mark.parametrize(("text", "seconds"), [("50ms", 0.05), ("1.5 s", 1.5), ("2min", 120), ("7µs", 7e-6)])
def test_times_are_read(text, seconds):
    assert adviser.parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "4", "GB", "-4GB", "0GB", "4 XB", "4GB 2", "nanGB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="memory must be a number above 0 with its unit, such as 4GB"):
        adviser.parse_bytes(text)


@pytest.mark.parametrize("text", ["", "50", "ms", "-1s", "0s", "5 hours"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="latency must be a number above 0 with its unit, such as 50ms"):
        adviser.parse_seconds(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": 0}, "tokens must be 1 to 100,000,000, got 0"),
        ({"tokens": 10, "step": "backward"}, "step must be one of forward, training, token"),
        ({"tokens": 10, "order": "price"}, "order must be one of accuracy, latency, memory"),
        ({"tokens": 10, "step": "token"}, "step token needs causal"),
    ],
)
def test_wishes_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Wish(**given)


def test_the_import_line_makes_the_mixer():
    for name in ("full", "mlp_mixer"):
        line = adviser_display.import_line(mixers.cards()[name], table(), Wish(64))
        exec(line, names := {})
        made = names["mixer"]
        assert made.dim == 128 and made.heads == 4 and isinstance(made, mixers.cards()[name].kind)


def test_figures_are_readable_and_say_where_they_were_not_measured():
    beyond = by_name(adviser.advise(table(), Wish(65536)))["full"]
    assert adviser_display.figure_of(beyond.seconds, "seconds") == "~~42.9 s"
    assert adviser_display.figure_of(beyond.bytes, "bytes") == "~~65.5 MB"
    assert adviser_display.figure_of(None, "seconds") == "–"
    lengths = "Measured at 256, 1,024, 4,096 tokens"
    assert f"{lengths}; ~~ extrapolated beyond the longest that the mixer was run at" in adviser_display.notes(
        [beyond], Wish(65536), table()
    )
    between = by_name(adviser.advise(table(), Wish(3000)))["full"]
    assert adviser_display.figure_of(between.seconds, "seconds") == "~90 ms"
    assert f"{lengths}; ~ interpolated between two of them" in adviser_display.notes([between], Wish(3000), table())
    measured = by_name(adviser.advise(table(), Wish(1024)))["full"]
    assert adviser_display.figure_of(measured.seconds, "seconds") == "10.5 ms"
    assert lengths in adviser_display.notes([measured], Wish(1024), table())


def test_the_plot_shows_those_that_none_beats(tmp_path):
    wish = Wish(1024, latency=0.02)
    advice = adviser.advise(table(), wish)
    axis = adviser_display.plot(advice, wish, table()).axes[0]
    front = next(line for line in axis.lines if line.get_label() == "none is better")
    assert list(front.get_xdata()) == sorted(1e3 * one.seconds.value for one in advice if one.best)
    assert {text.get_text() for text in axis.texts} == {"full", "linear", "fnet"}
    for ending in ("png", "svg"):
        assert adviser_display.save_plot(advice, wish, table(), tmp_path / f"plot.{ending}").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"plot must end in \.png"):
        adviser_display.save_plot(advice, wish, table(), tmp_path / "plot.gif")
    with pytest.raises(ValueError, match="at least one mixer that was measured"):
        adviser_display.plot([], wish, table())


def test_without_accuracies_memory_is_drawn():
    bare = table(accuracy=[])
    advice = adviser.advise(bare, Wish(1024))
    assert adviser_display.plot(advice, Wish(1024), bare).axes[0].get_ylabel() == "memory, MB"
    assert advice[0].card.name == "linear" and math.isfinite(advice[0].seconds.value)


def test_a_table_without_accuracy_gets_that_of_another():
    timed, scored = table(device="this", accuracy=[]), table(device="another")
    found, here = adviser.choose([timed, table(scale="smoke"), scored], device="this", kind="cpu")
    assert here and found.device == "this" and found.accuracy == scored.accuracy
    assert adviser.usable([dataclasses.replace(scored, speed=[]), timed])[0].accuracy == scored.accuracy
    assert adviser.usable([timed])[0].accuracy == []
