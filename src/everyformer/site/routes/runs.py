"""Runs: asking for one, watching it, ending it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Form, Header, HTTPException, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from everyformer.site import display, runs
from everyformer.site.models import ClaimRow, Run
from everyformer.site.routes.papers import find_paper
from everyformer.site.web import ASite, Curator, Number, Site, Visitor, address_of, allow, page, plot, see_other

router = APIRouter(include_in_schema=False)

LOOK_EVERY = 0.5
HEARTBEAT = 15.0
MOST_LISTENERS = 100
MOST_LISTENERS_OF_AN_ADDRESS = 6
LISTENERS: Counter[str] = Counter()


@router.post("/papers/{key}/runs")
def ask(
    key: str,
    site: ASite,
    person: Curator,
    claim: Annotated[str, Form()] = "",
    scale: Annotated[str, Form()] = "",
    seeds: Annotated[int, Form()] = 1,
) -> Response:
    """Queue a run of a claim, or go to the one that is under way."""
    with site.database.read() as session:
        paper = find_paper(session, key)
    try:
        runs.check(paper.slug, claim, scale, seeds)
        allow(site, "run", str(person.id), 30, 3600)
        run, new = runs.ask(site, paper, claim, scale, seeds, person)
    except runs.QueueFull as refusal:
        raise HTTPException(429, str(refusal), {"Retry-After": "60"}) from None
    except runs.Refused as refusal:
        raise HTTPException(422, str(refusal)) from None
    return see_other(f"/runs/{run.id}", "run-queued" if new else "run-under-way")


@router.get("/runs")
def latest(request: Request, site: ASite, visitor: Visitor) -> Response:
    """The last fifty runs."""
    with site.database.read() as session:
        found = session.scalars(sa.select(Run).order_by(Run.id.desc()).limit(50)).all()
    return page(request, "runs.html", visitor, runs=found)


@router.get("/runs/{number}")
def one(number: Number, request: Request, site: ASite, visitor: Visitor) -> Response:
    """A run: its state, its log, and what it measured."""
    with site.database.read() as session:
        run = _there(session.get(Run, number))
        card = session.scalar(
            sa.select(ClaimRow.card).where(ClaimRow.paper_id == run.paper_id, ClaimRow.name == run.claim)
        )
    text, offset = runs.read_log(site, number, whole=run.state not in runs.UNDER_WAY)
    return page(
        request, "run.html", visitor, run=run, card=card, state=describe(site, run), log=text, offset=offset,
        under_way=run.state in runs.UNDER_WAY,
    )  # fmt: skip


@router.post("/runs/{number}/cancel")
def cancel(number: Number, site: ASite, person: Curator) -> Response:
    """End a run, or take it out of the queue."""
    run = _there(runs.cancel(site, number))
    return see_other(f"/runs/{number}", "run-cancelled" if run.cancel_asked else "run-over")


@router.get("/runs/{number}/log.txt")
def log(number: Number, site: ASite) -> Response:
    """Everything a run said."""
    with site.database.read() as session:
        _there(session.get(Run, number))
    file = runs.log_file(site, number)
    return PlainTextResponse(runs.clean(site, file.read_bytes()) if file.is_file() else "")


@router.get("/runs/{number}/plot.svg")
def run_plot(number: Number, site: ASite) -> Response:
    """What a finished run drew."""
    with site.database.read() as session:
        run = _there(session.get(Run, number))
    return plot(runs.folder(site, number) / f"{run.paper.slug}.{run.claim}.{run.scale}.svg", 3600)


@router.get("/runs/{number}/events")
def events(
    number: Number,
    request: Request,
    site: ASite,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    last_event_id: Annotated[str, Header()] = "",
) -> Response:
    """The log as it grows and the state as it changes, as server-sent events; their ids are bytes of the log."""
    with site.database.read() as session:
        _there(session.get(Run, number))
    if last_event_id.isdecimal() and len(last_event_id) < 16:
        after = int(last_event_id)
    return Listening(address_of(request), follow(site, number, after))


def describe(site: Site, run: Run) -> str:
    """The state in words: how many runs go first, how long it has been running."""
    if run.state == "queued":
        with site.database.read() as session:
            before = runs.place(session, run)
        return f"queued, {display.plural(before, 'run')} before it" if before else "queued, it is next"
    if run.started_at is None:
        return run.state
    if run.state == "running":
        return (
            f"{'being cancelled' if run.cancel_asked else 'running'}, started {display.ago(run.started_at, site.now())}"
        )
    assert run.finished_at is not None
    return f"{run.state} after {display.seconds((run.finished_at - run.started_at).total_seconds())}"


async def follow(site: Site, number: int, offset: int) -> AsyncIterator[str]:
    """Events of a run until it is over or the page is closing: ``state``, ``log``, and ``done`` at the end."""
    told, quiet_since = "", time.monotonic()
    yield "retry: 2000\n\n"
    while not site.closing:
        state, words = await run_in_threadpool(_look, site, number)
        over = state not in runs.UNDER_WAY
        # The state is read before the log: whatever a run said before it ended is sent before its end.
        while True:
            text, now_at = await run_in_threadpool(runs.read_log, site, number, offset, whole=over)
            if now_at <= offset:
                break
            offset, quiet_since = now_at, time.monotonic()
            yield _event("log", text.removesuffix("\n"), offset)
        if words != told:
            told, quiet_since = words, time.monotonic()
            yield _event("state", words, offset)
        if over:
            yield _event("done", state, offset)
            return
        if time.monotonic() - quiet_since > HEARTBEAT:
            quiet_since = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_EVERY)


class Listening(StreamingResponse):
    """A stream of events to one of the few who may listen at once."""

    def __init__(self, who: str, content: AsyncIterator[str]) -> None:
        super().__init__(
            content, headers={"cache-control": "no-store", "x-accel-buffering": "no"}, media_type="text/event-stream"
        )
        self.who = who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if LISTENERS.total() >= MOST_LISTENERS or LISTENERS[self.who] >= MOST_LISTENERS_OF_AN_ADDRESS:
            full = PlainTextResponse("Too many are listening.\n", 503, {"Retry-After": "10"})
            await full(scope, receive, send)
            return
        LISTENERS[self.who] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            LISTENERS[self.who] -= 1
            if not LISTENERS[self.who]:
                del LISTENERS[self.who]


def _event(name: str, text: str, offset: int) -> str:
    lines = "".join(f"data: {line}\n" for line in text.split("\n"))
    return f"id: {offset}\nevent: {name}\n{lines}\n"


def _look(site: Site, number: int) -> tuple[str, str]:
    with site.database.read() as session:
        run = session.get(Run, number)
    return (run.state, describe(site, run)) if run else ("gone", "gone")


def _there(run: Run | None) -> Run:
    if run is None:
        raise HTTPException(404, "There is no such run.")
    return run
