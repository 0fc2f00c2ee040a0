"""The feed's lists: periods, orders, filters, on both databases."""

import datetime

import pytest

from everyformer.site import feed
from everyformer.site.feed import Filters, Unreadable, read_period


def titles(listing):
    return [paper.title for paper in listing.papers]


@pytest.mark.parametrize(
    ("view", "code", "first", "end"),
    [
        ("day", "2026-02-28", "2026-02-28", "2026-03-01"),
        ("week", "2026-W01", "2025-12-29", "2026-01-05"),
        ("week", "2020-W53", "2020-12-28", "2021-01-04"),
        ("month", "2026-12", "2026-12-01", "2027-01-01"),
    ],
)
def test_periods(view, code, first, end):
    period = read_period(view, code)
    assert (period.first.isoformat(), period.end.isoformat()) == (first, end)
    assert period.code == code
    assert period.before().end == period.first


@pytest.mark.parametrize(
    ("view", "code", "field"),
    [
        ("day", "2026-02-30", "date"),
        ("day", "26-02-03", "date"),
        ("day", "٢٠٢٦-02-03", "date"),
        ("week", "2025-W54", "week"),
        ("week", "2025-W53", "week"),
        ("week", "2025-W00", "week"),
        ("month", "2025-13", "month"),
        ("month", "0000-01", "month"),
        ("month", "2025-01-01", "month"),
    ],
)
def test_a_malformed_period_names_the_field(view, code, field):
    with pytest.raises(Unreadable) as caught:
        read_period(view, code)
    assert caught.value.field == field
    assert code in str(caught.value)


def test_a_day_lists_what_came_that_day_by_points(any_page):
    yesterday = any_page.clock().date() - datetime.timedelta(days=1)
    any_page.add_paper("2601.00001", title="old", submitted_on=yesterday)
    any_page.add_paper("2601.00002", title="plain", ordered_on=datetime.date(2026, 1, 2))
    any_page.add_paper("2601.00003", title="loved", points=3)
    any_page.add_paper("2601.00004", title="running", runs_here=True, ordered_on=datetime.date(2020, 1, 1))
    with any_page.database.read() as session:
        today = feed.period_of("day", any_page.clock().date())
        assert titles(feed.in_period(session, today, Filters())) == ["loved", "running", "plain"]
        assert titles(feed.in_period(session, feed.period_of("month", today.first), Filters())) == [
            "loved", "running", "old", "plain",
        ]  # fmt: skip
        earlier, later = feed.neighbours(session, today, today.first)
        assert (earlier.first, later) == (yesterday, None)
        assert feed.latest_day(session, yesterday) == yesterday


def test_trending_weighs_points_against_hours(any_page):
    now = any_page.clock()
    ages = {"new": (1, 1), "hot": (30, 10), "past": (100, 1000)}
    for index, (title, (points, hours)) in enumerate(ages.items()):
        at = now - datetime.timedelta(hours=hours)
        any_page.add_paper(f"2601.0000{index}", title=title, points=points, submitted_at=at)
    any_page.add_paper("2601.00009", title="silent")
    expected = sorted(ages, key=lambda title: -ages[title][0] / (ages[title][1] + 2) ** 1.5)
    with any_page.database.read() as session:
        assert titles(feed.trending(any_page.site, session, Filters())) == [*expected, "silent"]
        by_then = sorted(ages, key=lambda title: -ages[title][0] / (ages[title][1] + 60 * 24 + 2) ** 1.5)
        assert by_then != expected
        paged = [titles(feed.trending(any_page.site, session, Filters(), page, limit=1)) for page in range(5)]
        assert paged == [[title] for title in [*expected, "silent"]] + [[]]
        any_page.clock.forward(days=60)
        assert titles(feed.trending(any_page.site, session, Filters())) == [*by_then, "silent"]


def test_pages_join_without_gap_or_repetition(any_page):
    for index in range(7):
        any_page.add_paper(f"2601.0000{index}", title=str(index), points=index % 2)
    with any_page.database.read() as session:
        for ask in (
            lambda page: feed.newest(session, Filters(), page, 3),
            lambda page: feed.trending(any_page.site, session, Filters(), page, 3),
        ):
            pages = [ask(page) for page in range(3)]
            assert [page.more for page in pages] == [True, True, False]
            assert sorted(title for page in pages for title in titles(page)) == list("0123456")


def test_filters(any_page):
    any_page.add_paper("2601.00001", title="video", tags=["video", "attention"], runs_here=True)
    any_page.add_paper("2601.00002", title="graph", tags=["graph"])
    with any_page.database.read() as session:
        assert titles(feed.newest(session, Filters(tag="video"))) == ["video"]
        assert titles(feed.newest(session, Filters(tag="vide"))) == []
        assert titles(feed.newest(session, Filters(runs=True))) == ["video"]
        assert titles(feed.newest(session, Filters(runs=False))) == ["graph"]
        assert titles(feed.newest(session, Filters(verdict="reproduced"))) == []
        assert feed.tags(session) == ["attention", "graph", "video"]
    with pytest.raises(Unreadable, match="one of"):
        Filters(verdict="proved")
