"""Advice in words and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everyformer import mixers
from everyformer.lab.adviser import FITTED, Advice, Error, Place, Predicted, Wish, exponents, left_out
from everyformer.lab.mixer_table import MEASURE, STEPS, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table as RichTable

# Before a figure of a length that was not measured, and what it means.
MARKS: dict[Place, tuple[str, str]] = {
    "between": ("~", "interpolated between two of them"),
    "beyond": ("~~", "extrapolated beyond the longest that the mixer was run at"),
    "below": ("≤", "at most: the figure of the shortest, since what every call costs does not shrink with the tokens"),
}


def import_line(card: mixers.Card, table: Table, wish: Wish) -> str:
    """What to write to have it."""
    length = f", length={wish.tokens}" if not card.any_length else ""
    return (
        f'from everyformer import mixers; mixer = mixers.create("{card.name}", dim={table.dim}, heads={table.heads}, '
        f"causal={wish.causal}{length})"
    )


def facts(card: mixers.Card) -> list[str]:
    """The card in words."""
    said = [f"time {card.time}", f"memory {card.memory}"]
    said += ["keeps a cache"] if card.cache else []
    said += [] if card.any_length else ["one length"]
    said += ["takes trained attention weights"] if card.pretrained else []
    return said


def figure_of(predicted: Predicted | None, kind: str) -> str:
    """Seconds or bytes as tables show them, with a mark where the length was not measured (:data:`MARKS`)."""
    if predicted is None:
        return "–"
    said = readable_seconds(predicted.value) if kind == "seconds" else readable_bytes(predicted.value)
    return MARKS.get(predicted.place, ("", ""))[0] + said


def power_of(exponent: float | None) -> str:
    """An exponent as tables show it."""
    return "–" if exponent is None else f"{round(exponent, 1) + 0.0:.1f}"  # no -0.0


def exponents_in_words(table: Table) -> list[str]:
    """With which power of the tokens the time of each mixer grows, a line for each step that was measured."""
    said = []
    for step in STEPS:
        powers = [
            f"{name}{' causal' if causal else ''} {power_of(power)}"
            for (name, causal), power in exponents(table, step).items()
        ]
        said += [f"Time of a {step} step grows with the tokens to the power of: {', '.join(powers)}"] if powers else []
    return said


def errors_in_words(errors: dict[str, Error]) -> str:
    """How well the predictor does on lengths that were left out."""
    named = (("inside", "between lengths"), ("beyond", "one length beyond"))
    said = [
        f"{words} {100 * (error.median - 1):.0f}% (worst {100 * (error.worst - 1):.0f}%, {error.count} left out)"
        for where, words in named
        if (error := errors.get(where))
    ]
    return "Predictions miss measured times by: " + ("; ".join(said) if said else "not known, too few lengths")


def readable_seconds(value: float) -> str:
    """``3.2 ms``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def readable_bytes(value: float) -> str:
    """``120 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def rich_table(advice: Sequence[Advice], wish: Wish, table: Table) -> RichTable:
    """The table at the terminal, narrow enough for 80 columns: those that fit, then those that miss a limit.

    What has no figure for the step is left to :func:`against_in_words`.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    tasks, listed = tasks_of(advice), [one for one in advice if one.seconds or not one.against]
    shown = RichTable(
        title=title(wish, table), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    shown.add_column("Mixer", no_wrap=True)
    for name in ("Time", "n^", "Memory", *tasks):
        shown.add_column(name, justify="right", no_wrap=True)
    for one in listed:
        shown.add_row(
            f"{'*' if one.best else '×' if one.against else ' '} {one.card.name}",
            figure_of(one.seconds, "seconds"), power_of(one.exponent), figure_of(one.bytes, "bytes"),
            *(f"{one.accuracies[task]:.0f}" if task in one.accuracies else "–" for task in tasks),
            style="dim" if one.against else "",
        )  # fmt: skip
    return shown


def against_in_words(advice: Sequence[Advice]) -> list[str]:
    """What speaks against which mixers, a line for each reason."""
    names: dict[str, list[str]] = {}
    for one in advice:
        for why in one.against:
            names.setdefault(why, []).append(one.card.name)
    return [f"× {why}: {', '.join(said)}" for why, said in names.items()]


def tasks_of(advice: Sequence[Advice]) -> list[str]:
    """The tasks that any of them was measured on."""
    return list(dict.fromkeys(task for one in advice for task in one.accuracies))


def title(wish: Wish, table: Table) -> str:
    """What the figures are of."""
    way = "causal" if wish.causal else "seeing all"
    return f"One mixer, {way}, {wish.tokens:,} tokens, dim {table.dim}, {table.heads} heads: {wish.step}, on {table.device}"


def notes(advice: Sequence[Advice], wish: Wish, table: Table, elsewhere: str = "") -> list[str]:
    """What has to be known beside the table: marks, error, another machine (``elsewhere`` is this one)."""
    said = []
    if elsewhere:
        said.append(
            f"Measured on {table.device}, not on this device ({elsewhere}); measure here with: "
            f"{MEASURE} --device {table.kind} --dim {table.dim} --heads {table.heads}"
        )
    if any(one.best for one in advice):
        said.append("* no other that fits is faster and better")
    lengths = sorted({row.length for row in table.speed if row.causal == wish.causal and row.seconds(wish.step)})
    if lengths:
        marks = [
            f"{mark} {words}" for place, (mark, words) in MARKS.items() if any(place in one.places for one in advice)
        ]
        said.append("; ".join([f"Measured at {', '.join(f'{length:,}' for length in lengths)} tokens", *marks]))
    if any(one.exponent is not None for one in advice):
        said.append(
            f"n^ is the power of the tokens with which the time grows, fitted over the {FITTED} longest lengths"
        )
    unrun = [(one.card.name, one.stopped) for one in advice if one.stopped]
    said += [f"{name} was stopped at {row.length:,} tokens ({row.stopped})" for name, row in unrun]
    said.append(errors_in_words(left_out(table, wish.step)))
    if any(one.seconds and not one.bytes for one in advice):
        said.append(f"Memory for a {wish.step} was not measured, so that none is judged by it where there is no figure")
    if tested := [row.length for row in table.accuracy]:
        said.append(
            f"Tasks: % right, of small networks trained alike on {min(tested)} to {max(tested)} tokens whatever the length "
            "asked for, with narrower windows, blocks and landmarks than those timed here and made by the import line"
        )
        said.append(
            "Recall was read causally by all that can be causal; ListOps and pixels by networks that see all, except for "
            "mixers that are causal only"
        )
    return said


def choice(advice: Sequence[Advice], wish: Wish, table: Table) -> tuple[str, str]:
    """The first of those that fit in words, and the line that imports it; the line is empty where none fits."""
    first = advice[0] if advice and not advice[0].against else None
    if first is None:
        return "None fits.", ""
    return f"First choice: {first.card.name}, {', '.join(facts(first.card))}", import_line(first.card, table, wish)


def described(advice: Sequence[Advice], wish: Wish) -> str:
    """What the plot shows, for who cannot see it."""
    best = [one for one in advice if one.best and one.seconds is not None]
    best.sort(key=lambda one: one.seconds.value if one.seconds else 0.0)
    said = [f"{one.card.name} with {figure_of(one.seconds, 'seconds')}" for one in best]
    front = "; ".join(said) if said else "no mixer that fits"
    return f"Accuracy over time of a {wish.step} step at {wish.tokens:,} tokens. From fast to accurate: {front}."


def command(wish: Wish, table: Table) -> str:
    """The same question at the terminal."""
    words = [f"everyformer advise --tokens {wish.tokens}"]
    words += [f"--memory {wish.memory:.0f}B"] if wish.memory is not None else []
    words += [f"--latency {1e3 * wish.latency:g}ms"] if wish.latency is not None else []
    words += ["--causal"] if wish.causal else []
    words += [f"--step {wish.step}"] if wish.step != "forward" else []
    words += [f"--by {wish.order}"] if wish.order != "accuracy" else []
    return " ".join([*words, f"--device {table.kind}", f"--dim {table.dim}", f"--heads {table.heads}"])


def plot(advice: Sequence[Advice], wish: Wish, table: Table) -> Figure:
    """Quality over seconds (memory where no accuracy was measured), with the line of those that none beats.

    Raises:
        ValueError: nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    by_quality = any(one.quality is not None for one in advice)
    points: list[tuple[Advice, float, float]] = []
    for one in advice:
        height: Any = one.quality if by_quality else one.bytes and one.bytes.value / 1e6
        if one.seconds is not None and height is not None:
            points.append((one, 1e3 * one.seconds.value, 100 * height if by_quality else height))
    if not points:
        raise ValueError("advice must hold at least one mixer that was measured")
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    axis = figure.add_subplot()
    for fits, colour, label in ((True, "#0072b2", "fits"), (False, "#8c8c8c", "does not")):
        chosen = [point for point in points if bool(point[0].against) != fits]
        for hollow in (False, True):
            some = [point for point in chosen if bool(point[0].places & {"beyond", "below"}) == hollow]
            if some:
                where = ", outside the lengths measured" if hollow else ""
                axis.scatter(
                    [x for _, x, _ in some], [y for _, _, y in some], s=36, edgecolors=colour,
                    facecolors="none" if hollow else colour, label=label + where,
                )  # fmt: skip
    front = sorted((x, y) for one, x, y in points if one.best)
    axis.plot([x for x, _ in front], [y for _, y in front], color="#d55e00", linewidth=1.2, label="none is better")
    if wish.latency is not None:
        axis.axvline(1e3 * wish.latency, color="#8c8c8c", linestyle=":", linewidth=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.12, y=0.08)
    axis.set_xlabel(f"{wish.step} at {wish.tokens:,} tokens, ms")
    axis.set_ylabel("from chance (0) to all right (100), mean of the tasks" if by_quality else "memory, MB")
    axis.set_title(f"{'causal' if wish.causal else 'seeing all'} mixers, dim {table.dim}\n{table.device}", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _name_points(figure, [(one.card.name, x, y) for one, x, y in points])
    return figure


def _name_points(figure: Figure, points: list[tuple[str, float, float]]) -> None:
    """Write each name by its point, within the frame, where it covers the fewest points and names written before it."""
    figure.draw_without_rendering()
    axis = figure.axes[0]
    unit = figure.dpi / 72
    places = [tuple(map(float, axis.transData.transform((x, y)))) for _, x, y in points]
    taken = [(left - 3 * unit, low - 3 * unit, left + 3 * unit, low + 3 * unit) for left, low in places]
    frame = axis.get_window_extent()
    ways = [(right, up) for up in (-3, 5, -11) for right in (6, -6)] + [(0, 6), (0, -12)]
    for (name, x, y), (left, low) in sorted(zip(points, places, strict=True), key=lambda pair: pair[1]):
        wide = 4.6 * unit * len(name)  # of the letters at this size, about
        found = []
        for right, up in ways:
            side = "left" if right > 0 else "right" if right < 0 else "center"
            start = left + right * unit - {"left": 0.0, "center": wide / 2, "right": wide}[side]
            box = (start, low + (up - 1) * unit, start + wide, low + (up + 8) * unit)
            hits = sum(a[0] < box[2] and box[0] < a[2] and a[1] < box[3] and box[1] < a[3] for a in taken)
            hits += len(taken) * (start < frame.x0 or start + wide > frame.x1)
            found.append((hits, (right, up), side, box))
        _, offset, side, box = min(found, key=lambda place: place[0])
        taken.append(box)
        axis.annotate(name, (x, y), offset, textcoords="offset points", fontsize=8, ha=side)


def save_plot(advice: Sequence[Advice], wish: Wish, table: Table, file: Path) -> Path:
    """Write the plot to a ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ValueError: another ending.
        OSError: it cannot be written.
    """
    if file.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"plot must end in .png, .svg or .pdf, got {file}")
    figure = plot(advice, wish, table)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    return file
