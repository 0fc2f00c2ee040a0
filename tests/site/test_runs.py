"""Runs on the page: who may ask for what, how one is watched, and what a log may show."""

import dataclasses
import datetime

import pytest
import sqlalchemy as sa

from everyformer.site import runs
from everyformer.site.models import Run
from everyformer.site.routes import runs as routes


@pytest.fixture
def mesa(site_page):
    return site_page.add_paper("2309.05858", slug="mesa", title="Mesa & more")


def ask(page, key="mesa", client=None, **fields):
    fields = {"claim": "limit", "scale": "smoke", "seeds": "1"} | fields
    return (client or page.client).post(f"/papers/{key}/runs", data=page.form(client, **fields))


def all_runs(page):
    with page.database.read() as session:
        return session.scalars(sa.select(Run).order_by(Run.id)).all()


def change(page, number, **values):
    with page.database.write() as session:
        session.execute(sa.update(Run).where(Run.id == number).values(**values))


def write_log(page, number, content):
    file = runs.log_file(page.site, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_a_curator_queues_a_run_and_lands_on_its_page(any_page):
    any_page.add_paper("2309.05858", slug="mesa", title="Mesa & more")
    any_page.sign_in(role="curator")
    answer = ask(any_page)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/runs/1?said=run-queued"
    page = any_page.client.get(answer.headers["location"]).text
    assert "The run is queued." in page
    assert "queued, it is next" in page
    assert "Mesa &amp; more" in page
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in page
    assert "Mesa &amp; more" in any_page.client.get("/runs").text


def test_the_same_run_is_not_queued_twice(any_page):
    any_page.add_paper("2309.05858", slug="mesa")
    any_page.sign_in(role="curator")
    ask(any_page)
    assert ask(any_page).headers["location"] == "/runs/1?said=run-under-way"
    assert ask(any_page, seeds="2").headers["location"] == "/runs/2?said=run-queued"
    change(any_page, 1, state="finished", finished_at=any_page.clock(), started_at=any_page.clock())
    assert ask(any_page).headers["location"] == "/runs/3?said=run-queued"


def test_only_curators_ask_and_cancel(site_page, mesa):
    assert ask(site_page).headers["location"].startswith("/sign-in?")
    site_page.sign_in("reader@example.org")
    assert ask(site_page).status_code == 403
    site_page.sign_in("curator@example.org", "curator")
    ask(site_page)
    site_page.sign_in("reader@example.org")
    assert site_page.client.post("/runs/1/cancel", data=site_page.form()).status_code == 403
    assert "Cancel" not in site_page.client.get("/runs/1").text
    assert [run.state for run in all_runs(site_page)] == ["queued"]


@pytest.mark.parametrize(
    ("key", "fields", "status"),
    [
        ("mesa", {"claim": "no_such"}, 422),
        ("mesa", {"claim": "../../etc/passwd"}, 422),
        ("mesa", {"claim": "limit --out=/tmp"}, 422),
        ("mesa", {"claim": ""}, 422),
        ("mesa", {"scale": "huge"}, 422),
        ("mesa", {"scale": "paper"}, 422),
        ("mesa", {"scale": "smoke/../cpu"}, 422),
        ("mesa", {"seeds": "0"}, 422),
        ("mesa", {"seeds": "4"}, 422),
        ("mesa", {"seeds": "1; rm"}, 422),
        ("nobody", {}, 404),
        ("..%2F..%2Fmesa", {}, 405),
        ("2401.00001", {}, 422),
    ],
)
def test_what_the_catalogue_does_not_run_is_refused(site_page, mesa, key, fields, status):
    site_page.add_paper("2401.00001")
    site_page.sign_in(role="curator")
    assert ask(site_page, key, **fields).status_code == status
    assert all_runs(site_page) == []


def test_the_papers_own_size_is_refused_with_the_reason(site_page, mesa):
    site_page.sign_in(role="curator")
    assert "needs the paper&#39;s machines" in ask(site_page, scale="paper").text


def test_a_claim_that_is_not_built_is_refused(site_page, mesa, monkeypatch):
    from everyformer import catalog

    card = catalog.paper("mesa")
    planned = dataclasses.replace(card, claims=tuple(dataclasses.replace(claim, run=None) for claim in card.claims))
    monkeypatch.setattr(catalog, "papers", lambda: (planned,))
    site_page.sign_in(role="curator")
    answer = ask(site_page)
    assert answer.status_code == 422
    assert "not built yet" in answer.text


def test_a_full_queue_takes_no_more(site_page, mesa, monkeypatch):
    monkeypatch.setattr(runs, "LONGEST_QUEUE", 1)
    site_page.sign_in(role="curator")
    ask(site_page)
    assert ask(site_page, claim="conservation").status_code == 429
    assert len(all_runs(site_page)) == 1


def test_a_queued_run_is_cancelled_at_once(any_page):
    any_page.add_paper("2309.05858", slug="mesa")
    any_page.sign_in(role="curator")
    ask(any_page)
    answer = any_page.client.post("/runs/1/cancel", data=any_page.form())
    assert answer.headers["location"] == "/runs/1?said=run-cancelled"
    assert all_runs(any_page)[0].state == "cancelled"
    assert runs.take(any_page.site, "here") is None
    assert any_page.client.post("/runs/2/cancel", data=any_page.form()).status_code == 404


def test_a_finished_run_stays_finished_when_cancelled(site_page, mesa):
    site_page.sign_in(role="curator")
    ask(site_page)
    change(site_page, 1, state="finished", finished_at=site_page.clock(), started_at=site_page.clock())
    answer = site_page.client.post("/runs/1/cancel", data=site_page.form())
    assert answer.headers["location"] == "/runs/1?said=run-over"
    assert all_runs(site_page)[0].state == "finished"


def test_runs_are_taken_in_order_and_one_at_a_time(any_page):
    any_page.add_paper("2309.05858", slug="mesa")
    any_page.sign_in(role="curator")
    ask(any_page)
    ask(any_page, claim="conservation")
    first = runs.take(any_page.site, "here")
    assert (first.id, first.state, first.slot, first.attempts) == (1, "running", 0, 1)
    assert runs.take(any_page.site, "there") is None
    assert "queued, 1 run before it" in any_page.client.get("/runs/2").text
    change(any_page, 1, state="failed", slot=None, finished_at=any_page.clock())
    assert runs.take(any_page.site, "there").id == 2


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_run_that_another_worker_is_just_taking_is_not_overtaken(any_page):
    any_page.add_paper("2309.05858", slug="mesa")
    any_page.sign_in(role="curator")
    ask(any_page)
    ask(any_page, claim="conservation")
    with any_page.database.write() as session:
        assert session.get(Run, 1, with_for_update={"of": Run})
        assert runs.take(any_page.site, "here") is None
    assert runs.take(any_page.site, "here").id == 1


def test_the_database_itself_allows_one_run_in_a_slot(any_page):
    any_page.add_paper("2309.05858", slug="mesa")
    any_page.sign_in(role="curator")
    ask(any_page)
    ask(any_page, claim="conservation")
    runs.take(any_page.site, "here")
    with pytest.raises(sa.exc.IntegrityError):
        change(any_page, 2, state="running", slot=0)


def test_a_log_is_shown_as_text(site_page, mesa):
    site_page.sign_in(role="curator")
    ask(site_page)
    where = site_page.site.settings.data.resolve()
    write_log(
        site_page,
        1,
        b"<script>alert(1)</script>\n\x1b[1;31mred\x1b[0m \x1b]0;title\x07and \x00plain\n 10%\r 50%\r100%\nat "
        + str(where).encode()
        + b"/runs/1\n",
    )
    page = site_page.client.get("/runs/1").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    text = site_page.client.get("/runs/1/log.txt")
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.text == "<script>alert(1)</script>\nred and plain\n100%\nat runs/1\n"


def test_a_long_log_is_shown_from_its_end_and_read_on_in_whole_lines(site_page, mesa):
    lines = [f"line {number}" for number in range(20_000)]
    file = write_log(site_page, 1, "\n".join(lines).encode())
    text, offset = runs.read_log(site_page.site, 1)
    assert len(text) <= runs.TAIL
    shown = text.splitlines()
    assert shown == lines[-1 - len(shown) : -1]  # the last one has no end yet
    with file.open("ab") as more:
        more.write(b" and its end\nunfinished")
    assert runs.read_log(site_page.site, 1, offset) == ("line 19999 and its end\n", file.stat().st_size - 10)

    read, offset = [], 0
    while True:
        text, reached = runs.read_log(site_page.site, 1, offset, whole=True)
        if reached == offset:
            break
        read.append(text)
        offset = reached
    assert "".join(read).encode() == file.read_bytes()


def test_events_of_a_run_that_is_over_end_with_done_and_go_on_from_a_byte(site_page, mesa):
    site_page.sign_in(role="curator")
    ask(site_page)
    began = site_page.clock()
    over = began + datetime.timedelta(seconds=12)
    change(site_page, 1, state="failed", started_at=began, finished_at=over, error="It broke.")
    write_log(site_page, 1, b"one\ntwo\nthree")
    answer = site_page.client.get("/runs/1/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == (
        "retry: 2000\n\n"
        "id: 13\nevent: log\ndata: one\ndata: two\ndata: three\n\n"
        "id: 13\nevent: state\ndata: failed after 12 s\n\n"
        "id: 13\nevent: done\ndata: failed\n\n"
    )
    again = site_page.client.get("/runs/1/events", headers={"Last-Event-ID": "4"}).text
    assert "data: two\ndata: three\n" in again
    assert "data: one" not in again
    assert "data: one" not in site_page.client.get("/runs/1/events?after=4").text
    assert "event: log" not in site_page.client.get("/runs/1/events", headers={"Last-Event-ID": "999999"}).text
    assert not routes.LISTENERS
    page = site_page.client.get("/runs/1").text
    assert "It broke." in page
    assert "failed after 12 s" in page
    assert "Run it again" in page
    assert "http-equiv" not in page


def test_so_many_may_listen(site_page, mesa, monkeypatch):
    site_page.sign_in(role="curator")
    ask(site_page)
    change(site_page, 1, state="failed", started_at=site_page.clock(), finished_at=site_page.clock())
    monkeypatch.setattr(routes, "MOST_LISTENERS_OF_AN_ADDRESS", 0)
    answer = site_page.client.get("/runs/1/events")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "10"


def test_the_figures_of_a_finished_run_are_shown(site_page, mesa):
    from everyformer import catalog

    result = next(result for result in catalog.recorded(catalog.shipped_results()).values() if result.paper == "mesa")
    site_page.sign_in(role="curator")
    ask(site_page, claim=result.claim)
    now = site_page.clock()
    change(
        site_page, 1, state="finished", started_at=now, finished_at=now, verdict=result.verdict, result=result.to_json()
    )
    page = site_page.client.get("/runs/1").text
    assert result.metric in page
    assert f"{result.method.mean:.4g}" in page
    assert result.verdict in page
    assert result.verdict in site_page.client.get("/runs").text


@pytest.mark.parametrize("address", ["/runs/7", "/runs/7/log.txt", "/runs/7/events"])
def test_a_run_that_is_not_there(site_page, address):
    assert site_page.client.get(address).status_code == 404


@pytest.mark.parametrize("number", ["0", "-1", "x", "99999999999999999999"])
def test_numbers_that_no_run_can_have(site_page, number):
    assert site_page.client.get(f"/runs/{number}").status_code == 422


def test_the_button_is_for_curators(site_page, mesa):
    from everyformer.site.models import ClaimRow

    with site_page.database.write() as session:
        session.add(ClaimRow(paper_id=mesa.id, name="limit", position=0, card={}, runnable=True))
    template = site_page.site.templates.from_string(
        '{% from "run_button.html" import run_button %}{{ run_button(paper, claim, visitor, form_token) }}'
    )

    def button(visitor):
        with site_page.database.read() as session:
            claim = session.scalar(sa.select(ClaimRow))
        return template.render(paper=mesa, claim=claim, visitor=visitor, form_token=lambda: "token").strip()

    for visitor in (None, {"role": "reader"}):
        assert "<form" not in button(visitor)
        assert "everyformer run mesa.limit" in button(visitor)
    assert 'action="/papers/mesa/runs"' in button({"role": "curator"})
