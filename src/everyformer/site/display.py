"""How facts are written on the page: dates, counts, verdicts, figures."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from everyformer.catalog import VERDICTS

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


FILTERS = {
    "day": day, "ago": ago, "plural": plural, "seconds": seconds, "verdict_class": verdict_class,
    "verdict_counts": verdict_counts,
}  # fmt: skip
