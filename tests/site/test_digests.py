"""Digests: complete periods, each exactly once."""

import datetime
import re
import threading

import pytest
import sqlalchemy as sa

from everyformer.site import digests, mail
from everyformer.site.models import Digest, Mail, Subscription

UTC = datetime.timezone.utc
LONG_AGO = datetime.datetime(2026, 11, 1, tzinfo=UTC)
RESULT = {
    "metric": "error", "unit": "%", "paper_value": 2.5, "paper_baseline": 5.0, "verdict": "reproduced",
    "method": {"mean": 2.0, "low": 1.9, "high": 2.1, "values": [1.9, 2.1]},
}  # fmt: skip


def at(day, hour=12, minute=0, month=11):
    return datetime.datetime(2026, month, day, hour, minute, tzinfo=UTC)


def subscribe(page, email="ada@example.org", scope="all", value="", period="day", when=LONG_AGO):
    with page.database.write() as session:
        session.add(
            Subscription(email=email, scope=scope, value=value, period=period, created_at=when, confirmed_at=when)
        )


def paper(page, arxiv, day, **facts):
    return page.add_paper(arxiv, submitted_on=at(day).date(), submitted_at=at(day), **facts)


def queue(page, when):
    page.clock.at = when
    return digests.queue_due(page.site)


def digest_rows(page):
    with page.database.read() as session:
        return session.execute(sa.select(Digest.period, Digest.papers).order_by(Digest.id)).all()


def test_a_day_is_sent_at_seven_on_the_next(any_page):
    subscribe(any_page)
    paper(any_page, "2601.00001", 24, title="Of the day before")
    paper(any_page, "2601.00002", 25, title="Of today")
    assert queue(any_page, at(25, 6, 59)) == 0  # the 23rd was empty
    assert queue(any_page, at(25, 7)) == 1
    assert queue(any_page, at(25, 23)) == 0
    [message] = any_page.letters()
    text = message.get_body(("plain",)).get_content()
    assert message["subject"] == "1 paper: Tuesday, Nov 24"
    assert "Of the day before" in text and "Of today" not in text
    assert [tuple(row) for row in digest_rows(any_page)] == [("2026-11-23", 0), ("2026-11-24", 1)]


def test_a_week_is_sent_on_monday(site_page):
    subscribe(site_page, period="week")
    paper(site_page, "2601.00001", 16)
    paper(site_page, "2601.00002", 22)
    paper(site_page, "2601.00003", 23)
    assert queue(site_page, at(23, 6, 59)) == 0
    assert queue(site_page, at(23, 7)) == 1
    assert queue(site_page, at(29)) == 0
    [message] = site_page.letters()
    assert message["subject"] == "2 papers: Week 47: Nov 16 to Nov 22"


def test_a_worker_that_was_away_sends_the_last_period_only(site_page):
    subscribe(site_page, period="week")
    subscribe(site_page, period="day", email="bob@example.org")
    for day in range(2, 25):
        paper(site_page, f"2601.000{day:02}", day)
    assert queue(site_page, at(25)) == 2
    assert [row.period for row in digest_rows(site_page)] == ["2026-11-24", "2026-W47"]


def test_who_confirmed_today_begins_tomorrow(site_page):
    subscribe(site_page, when=at(25, 9))
    paper(site_page, "2601.00001", 24)
    paper(site_page, "2601.00002", 25)
    assert queue(site_page, at(25, 10)) == 0
    assert queue(site_page, at(26, 7)) == 1
    assert "2601.00002" in site_page.letters()[0].get_body(("plain",)).get_content()


def test_nothing_new_is_no_mail(site_page):
    subscribe(site_page, scope="tag", value="vision")
    paper(site_page, "2601.00001", 24, tags=["language"])
    assert queue(site_page, at(25)) == 0
    assert site_page.letters() == []


def test_unconfirmed_and_ended_subscriptions_get_nothing(site_page):
    subscribe(site_page)
    subscribe(site_page, email="bob@example.org")
    with site_page.database.write() as session:
        ada, bob = session.scalars(sa.select(Subscription).order_by(Subscription.id))
        ada.confirmed_at, bob.ended_at = None, at(2)
    paper(site_page, "2601.00001", 24)
    assert queue(site_page, at(25)) == 0


def test_a_digest_ended_after_it_was_queued_is_not_sent(site_page):
    subscribe(site_page)
    paper(site_page, "2601.00001", 24)
    assert queue(site_page, at(25)) == 1
    digests.end(site_page.site, 1)
    assert site_page.letters() == []


def test_workers_at_once_queue_each_digest_once(any_page):
    for number in range(5):
        subscribe(any_page, email=f"a{number}@example.org")
    paper(any_page, "2601.00001", 24)
    any_page.clock.at = at(25)
    start = threading.Barrier(4)
    queued, failures = [], []

    def work():
        start.wait()
        try:
            queued.append(digests.queue_due(any_page.site))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(queued) == 5
    with any_page.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Mail)) == 5


def test_a_crash_between_leaves_neither_digest_nor_mail(site_page, monkeypatch):
    subscribe(site_page)
    paper(site_page, "2601.00001", 24)
    whole = mail.queue

    def crash(*words):
        whole(*words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mail, "queue", crash)
        with pytest.raises(KeyboardInterrupt):
            queue(site_page, at(25))
    assert digest_rows(site_page) == []
    assert queue(site_page, at(25)) == 1
    assert len(site_page.letters()) == 1


def test_the_ten_with_most_points_come_first(site_page):
    subscribe(site_page)
    for number in range(12):
        paper(site_page, f"2601.000{number:02}", 24, title=f"Number {number}", points=float(number))
    queue(site_page, at(25))
    text = site_page.letters()[0].get_body(("plain",)).get_content()
    assert re.findall(r"Number \d+", text) == [f"Number {number}" for number in range(11, 1, -1)]


def test_tags_and_searches_choose(any_page):
    paper(any_page, "2601.00001", 24, title="Linear attention for video", tags=["vision"])
    paper(any_page, "2601.00002", 24, title="Graphs and their nodes", tags=["graph"])
    paper(any_page, "2601.00003", 20, title="Linear attention, earlier", tags=["vision"])
    subscribe(any_page, scope="tag", value="graph", email="tag@example.org")
    subscribe(any_page, scope="query", value="linear attention", email="query@example.org")
    assert queue(any_page, at(25)) == 2
    said = {message["to"]: message.get_body(("plain",)).get_content() for message in any_page.letters()}
    assert "Graphs and" in said["tag@example.org"] and "Linear" not in said["tag@example.org"]
    assert "for video" in said["query@example.org"]
    assert "Graphs and" not in said["query@example.org"] and "earlier" not in said["query@example.org"]


def test_a_digest_tells_what_was_measured_and_how_to_end_it(site_page):
    subscribe(site_page, scope="tag", value="vision")
    paper(
        site_page, "2601.00001", 24, title="A <b>title</b>", slug="fewer", tags=["vision"], organisation="Some lab",
        headline={"claim": "fewer", "result": RESULT},
    )  # fmt: skip
    queue(site_page, at(25))
    [message] = site_page.letters()
    text, html = (message.get_body((kind,)).get_content() for kind in ("plain", "html"))
    assert "error (%): paper 2.5 vs 5, here 2" in text and "reproduced" in text
    assert "A <b>title</b>" in text and "A &lt;b&gt;title&lt;/b&gt;" in html
    assert "http://127.0.0.1:8000/papers/fewer" in text
    link = message["list-unsubscribe"].strip("<>")
    assert message["list-unsubscribe-post"] == "List-Unsubscribe=One-Click"
    assert link in text and link in html
    answer = site_page.client.post(link.removeprefix("http://127.0.0.1:8000"), data={"List-Unsubscribe": "One-Click"})
    assert answer.status_code == 200
    assert queue(site_page, at(26)) == 0


def test_the_latest_digest_is_on_the_page(site_page):
    assert "no day with papers" in site_page.client.get("/digest").text
    paper(site_page, "2601.00001", 20, title="Of the last day with any")
    paper(site_page, "2601.00002", 25, title="Of today")
    text = site_page.client.get("/digest").text
    assert "Of the last day with any" in text and "Of today" not in text
    assert "Friday, Nov 20" in text
