"""How facts are written on the page: dates, counts, verdicts, figures."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from everyformer.catalog import VERDICTS, Result, Spread
from everyformer.lab import report
from everyformer.site.feed import Period

VERDICT_CLASS = {"reproduced": "yes", "direction only": "partly", "not reproduced": "no"}


def day(value: datetime.date | None, today: datetime.date) -> str:
    """``Feb 14``, and the year only when it is not the current one: ``Oct 23, 2024``."""
    if value is None:
        return ""
    year = f", {value.year}" if value.year != today.year else ""
    return f"{value:%b} {value.day}{year}"


def ago(value: datetime.datetime, now: datetime.datetime) -> str:
    """``just now``, ``5 minutes ago``, ``3 hours ago``, then the day."""
    seconds = (now - value).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return plural(int(seconds // 60), "minute") + " ago"
    if seconds < 86400:
        return plural(int(seconds // 3600), "hour") + " ago"
    return day(value.date(), now.date())


def plural(count: int, noun: str) -> str:
    """``1 author``, ``7 authors``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def seconds(value: float) -> str:
    """``12 s``, ``3 min 20 s``."""
    return f"{value:.0f} s" if value < 120 else f"{value // 60:.0f} min {value % 60:.0f} s"


def verdict_class(verdict: str) -> str:
    """The style of a verdict."""
    return VERDICT_CLASS[verdict]


def verdict_counts(verdicts: Mapping[str, str]) -> list[tuple[str, int]]:
    """How many claims came to which verdict, best first."""
    found = list(verdicts.values())
    return [(verdict, found.count(verdict)) for verdict in VERDICTS if verdict in found]


def span(period: Period, today: datetime.date) -> str:
    """A day, a week or a month in words."""
    if period.view == "day":
        return f"{period.first:%A}, {day(period.first, today)}"
    if period.view == "week":
        last = period.end - datetime.timedelta(days=1)
        return f"Week {period.first.isocalendar().week}: {day(period.first, today)} to {day(last, today)}"
    return f"{period.first:%B %Y}"


def metric(result: Mapping[str, Any]) -> str:
    """The metric with its unit, of a card or a result."""
    return f"{result['metric']} ({result['unit']})" if result["unit"] else str(result["metric"])


def reported(result: Mapping[str, Any]) -> str:
    """The paper's own figure, and its baseline's where there is one."""
    if result["paper_value"] is None:
        return "no figure"
    against = f" vs {report.number(result['paper_baseline'])}" if result["paper_baseline"] is not None else ""
    return f"{report.number(result['paper_value'])}{against}"


def measured(result: Mapping[str, Any], who: str = "method") -> str:
    """A mean with its interval."""
    return report.interval(Spread(**result[who]))


def effect(result: Mapping[str, Any]) -> str:
    """The measured effect, and in brackets the one that was declared."""
    full = Result.from_json(result)
    return f"{report.effect(full)} ({report.wanted(full)})"


def spreads(result: Mapping[str, Any], card: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every figure of a result by name: method, baseline, and what was measured beside them."""
    return [
        (f"{card['method'] or 'method'}: {metric(result)}", result["method"]),
        (f"{card['baseline'] or 'baseline'}: {metric(result)}", result["baseline"]),
        *result.get("extras", {}).items(),
    ]


def described(result: Mapping[str, Any]) -> str:
    """What a plot shows, for who cannot see it: the bars, then where each line begins and ends."""
    said = [
        f"{metric(result)}: method {measured(result)}, baseline {measured(result, 'baseline')}, "
        f"the paper {reported(result)}; {result['verdict']}."
    ]
    for panel in result.get("series", []):
        if panel["kind"] == "heat":
            said.append(f"{panel['title']}: a map of {panel['y_label']} over {panel['x_label']}.")
            continue
        lines = [_line(name, xs, ys, panel.get("ticks", [])) for name, (xs, ys) in list(panel["lines"].items())[:6]]
        said.append(f"{panel['title']}, {panel['y_label']} over {panel['x_label']}: {'; '.join(lines)}.")
    return " ".join(said)


def _line(name: str, xs: list[float], ys: list[float], ticks: list[str]) -> str:
    if not xs:
        return f"{name}, empty"
    where = [
        ticks[int(x)] if ticks and x == int(x) and 0 <= x < len(ticks) else report.number(x) for x in (xs[0], xs[-1])
    ]
    if len(xs) == 1:
        return f"{name} {report.number(ys[0])} at {where[0]}"
    return f"{name} from {report.number(ys[0])} at {where[0]} to {report.number(ys[-1])} at {where[1]}"


def plot_size(result: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of a result's plot in pixels, so that the page keeps its place."""
    columns, rows = report.grid_of(1 + len(result.get("series", [])))
    return round(96 * report.PANEL[0] * columns), round(96 * report.PANEL[1] * rows)


FILTERS = {
    "day": day, "ago": ago, "plural": plural, "seconds": seconds, "span": span, "metric": metric, "reported": reported,
    "measured": measured, "effect": effect, "spreads": spreads, "described": described, "plot_size": plot_size,
    "number": report.number, "interval": lambda spread: report.interval(Spread(**spread)),
    "moment": datetime.datetime.fromisoformat, "verdict_class": verdict_class, "verdict_counts": verdict_counts,
}  # fmt: skip
