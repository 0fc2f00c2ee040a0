"""What programs may read: papers, claims, results and runs as JSON, and a page for people that says how."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from everyformer.catalog import Verdict
from everyformer.site import feed, search
from everyformer.site.arxiv import arxiv_id
from everyformer.site.models import ClaimRow, Paper, Person, Run
from everyformer.site.query import LONGEST, Malformed, parse
from everyformer.site.web import ASite, Site, Visitor, its_turn, page


class Shape(BaseModel):
    """Fields in Python's spelling here, in JavaScript's outside."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class Problem(Shape):
    """What is wrong with one part of a request."""

    field: str = Field(examples=["query.week"])
    message: str


class Invalid(Shape):
    """A request that cannot be read."""

    detail: list[Problem]


class Missing(Shape):
    """Something that is not here."""

    detail: str


class Author(Shape):
    """Somebody who wrote a paper."""

    name: str


class User(Shape):
    """Somebody who submitted one, as existing clients expect it."""

    user: str
    fullname: str
    avatar_url: str = ""
    type: str = "user"


class Organization(Shape):
    """Where a paper comes from, as existing clients expect it."""

    name: str
    fullname: str
    avatar_url: str = ""


class PaperOut(Shape):
    """A paper. Existing clients know most names; ``claims`` are asked for apart.

    ``summary`` is ours where we wrote one, else the authors' abstract. ``publishedAt`` is null where no source tells it.
    ``numComments`` counts those here and, of them told apart by ``commentsElsewhere``, those of the feed it came from.
    """

    id: str = Field(description="The arXiv identifier.", examples=["2509.24006"])
    slug: str | None = Field(description="The name in the catalogue, when the paper runs here.")
    url: str
    title: str
    summary: str
    abstract: str
    authors: list[Author]
    author_count: int | None
    published_at: datetime.datetime | None
    submitted_on_daily_at: datetime.datetime
    submitted_on_daily_by: User | None
    upvotes: int
    num_comments: int
    comments_elsewhere: int
    organization: Organization | None
    project_page: str | None
    github_repo: str | None
    licence: str | None
    tags: list[str]
    runs_here: bool
    verdicts: dict[str, Verdict]


class SpreadOut(Shape):
    """A mean over seeds with its 95% interval."""

    mean: float | None
    low: float | None
    high: float | None
    values: list[float | None]


class ThresholdOut(Shape):
    """The effect that was declared before the run."""

    kind: Literal["ratio", "relative", "difference", "bound"]
    size: float


class ResultOut(Shape):
    """What was measured here, without series; ``raw`` is the address of everything."""

    scale: str
    method: SpreadOut
    baseline: SpreadOut
    effect: SpreadOut
    threshold: ThresholdOut
    seeds: list[int]
    device: str
    versions: dict[str, str]
    commit: str
    seconds: float
    peak_mb: float
    created: str
    raw: str


class ClaimOut(Shape):
    """A claim of a paper: its figures, and ours when it was measured."""

    paper: str
    name: str
    statement: str
    metric: str
    unit: str
    better: Literal["higher", "lower"]
    setting: str
    method: str
    baseline: str
    paper_value: float | None
    paper_baseline: float | None
    runnable: bool
    verdict: Verdict | None
    result: ResultOut | None


class PaperWithClaims(PaperOut):
    """A paper with what it claims and what was measured."""

    claims: list[ClaimOut]


class Papers(Shape):
    """A page of a list."""

    papers: list[PaperOut]
    p: int
    more: bool


class Claims(Shape):
    """A page of claims that were measured."""

    claims: list[ClaimOut]
    p: int
    more: bool


class DailyPaper(Shape):
    """An entry of the daily list, in the form that existing clients read.

    Its ``publishedAt`` is the day of the list, and null where the paper's own is: clients would take one for the other.
    """

    paper: PaperOut
    published_at: datetime.datetime | None
    submitted_on_daily_at: datetime.datetime
    title: str
    summary: str
    num_comments: int
    submitted_by: User | None
    organization: Organization | None
    project_page: str | None
    github_repo: str | None


class RunOut(Shape):
    """A claim that was, is or will be checked here."""

    id: int
    paper: str
    claim: str
    scale: str
    seeds: int
    state: str
    verdict: Verdict | None
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None
    url: str


class Runs(Shape):
    """A page of runs, the latest first."""

    runs: list[RunOut]
    p: int
    more: bool


router = APIRouter(prefix="/api", responses={422: {"model": Invalid}}, tags=["papers"])
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Missing}}

Number = Annotated[int, Query(ge=0, le=10_000, description="The page, from 0.")]
Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
Day = Annotated[
    str | None,
    Query(pattern=r"^[12]\d{3}-\d\d-\d\d$", description="Like 2026-11-25.", json_schema_extra={"format": "date"}),
]
Week = Annotated[str | None, Query(pattern=r"^[12]\d{3}-W(0[1-9]|[1-4]\d|5[0-3])$", description="Like 2026-W48.")]
Month = Annotated[str | None, Query(pattern=r"^[12]\d{3}-(0[1-9]|1[0-2])$", description="Like 2026-11.")]
Words = Annotated[str, Query(max_length=LONGEST, description="A search, as in the box of the page.")]
Tag = Annotated[str, Query(max_length=64)]


@router.get("", include_in_schema=False)
def about(request: Request, visitor: Visitor) -> Response:
    """The page for people."""
    return page(request, "api.html", visitor)


@router.get("/papers", summary="Papers as the front page lists them")
def list_papers(
    site: ASite,
    view: feed.View = "newest",
    date: Day = None,
    week: Week = None,
    month: Month = None,
    tag: Tag = "",
    runs: Annotated[bool | None, Query(description="Only papers that run here, or only others.")] = None,
    verdict: Annotated[Verdict | None, Query(description="Only papers with a claim of this verdict.")] = None,
    p: Number = 0,
    limit: Limit = feed.PAGE,
) -> Papers:
    """``date``, ``week`` or ``month`` ask for that time, whatever the view; a view of a day, a week or a month without
    one is the latest that has papers."""
    filters = feed.Filters(tag, runs, verdict or "")
    period = _period(date, week, month)
    with site.database.read() as session:
        if period is None and view in ("day", "week", "month"):
            period = feed.period_of(view, feed.latest_day(session, site.now().date()))
        if period:
            listing = feed.in_period(session, period, filters, p, limit)
        elif view == "trending":
            listing = feed.trending(site, session, filters, p, limit)
        else:
            listing = feed.newest(session, filters, p, limit)
        return Papers(papers=_papers(site, session, listing.papers), p=p, more=listing.more)


@router.get("/search", summary="Papers that a search finds, best first", dependencies=[Depends(its_turn)])
def find(site: ASite, q: Words, p: Number = 0, limit: Limit = feed.PAGE) -> Papers:
    """The search of the page, with its words, phrases and filters."""
    with site.database.read() as session:
        listing = _search(site, session, q, p, limit)
        return Papers(papers=_papers(site, session, listing.papers), p=p, more=listing.more)


@router.get(
    "/papers/search",
    summary="The same, in the form that existing clients read",
    dependencies=[Depends(its_turn)],
)
def find_daily(site: ASite, q: Words = "", limit: Limit = 50) -> list[DailyPaper]:
    """The papers of a search as entries of the daily list."""
    with site.database.read() as session:
        return _daily(_papers(site, session, _search(site, session, q, 0, limit).papers))


@router.get("/daily_papers", summary="The daily list, in the form that existing clients read")
def daily_papers(
    site: ASite,
    date: Day = None,
    week: Week = None,
    month: Month = None,
    submitter: Annotated[str, Query(max_length=80, description="Only what this person submitted.")] = "",
    sort: Literal["publishedAt", "trending"] = "publishedAt",
    p: Number = 0,
    limit: Limit = 50,
) -> list[DailyPaper]:
    """The papers of a day, a week or a month, or all of them, the latest first."""
    period = _period(date, week, month)
    with site.database.read() as session:
        if sort == "trending" and not period and not submitter:
            found = feed.trending(site, session, feed.Filters(), p, limit).papers
        else:
            statement = sa.select(Paper)
            if period:
                statement = statement.where(Paper.submitted_on >= period.first, Paper.submitted_on < period.end)
            if submitter:
                people = sa.select(Person.id).where(Person.name == submitter)
                statement = statement.where(Paper.submitted_by.in_(people))
            first = [] if sort == "trending" else [Paper.submitted_on.desc()]
            statement = statement.order_by(*first, Paper.points.desc(), Paper.id.desc())
            found = list(session.scalars(statement.offset(p * limit).limit(limit)))
        return _daily(_papers(site, session, found))


@router.get(
    "/papers/{key:path}.md",
    summary="A paper's page as Markdown",
    responses=NOT_FOUND | {200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}},
    response_class=Response,
)
def paper_as_text(key: str, site: ASite) -> Response:
    """Facts, summary, claims and figures as text."""
    with site.database.read() as session:
        paper = _find(session, key)
        text = site.templates.get_template("paper.md").render(paper=paper, claims=_claims(session, paper))
    return Response(text, media_type="text/markdown")


@router.get("/papers/{key:path}", summary="One paper with its claims", responses=NOT_FOUND)
def one_paper(key: str, site: ASite) -> PaperWithClaims:
    """``key`` is the name in the catalogue or an arXiv identifier."""
    with site.database.read() as session:
        paper = _find(session, key)
        claims = [_claim(site, row, paper.key) for row in _claims(session, paper)]
        return PaperWithClaims(**_papers(site, session, [paper])[0].model_dump(), claims=claims)


@router.get("/claims", summary="Every claim that was measured")
def measured_claims(
    site: ASite,
    verdict: Annotated[Verdict | None, Query(description="Only claims of this verdict.")] = None,
    p: Number = 0,
    limit: Limit = 100,
) -> Claims:
    """The paper's figure and its baseline, ours with an interval, and the verdict."""
    with site.database.read() as session:
        statement = sa.select(ClaimRow, Paper).join(Paper, Paper.id == ClaimRow.paper_id)
        statement = statement.where(ClaimRow.verdict == verdict if verdict else ClaimRow.verdict.is_not(None))
        statement = statement.order_by(Paper.slug, ClaimRow.position).offset(p * limit).limit(limit + 1)
        found = [_claim(site, row, paper.key) for row, paper in session.execute(statement).tuples()]
    return Claims(claims=found[:limit], p=p, more=len(found) > limit)


@router.get(
    "/results/{stem}.json",
    summary="Everything that was recorded of a claim",
    responses=NOT_FOUND | {200: {"content": {"application/json": {"schema": {"type": "object"}}}}},
    response_class=JSONResponse,
)
def result(stem: str, site: ASite) -> JSONResponse:
    """The recorded result as the program wrote it: values of each seed, series, environment."""
    paper, _, rest = stem.partition(".")
    claim, _, scale = rest.partition(".")
    with site.database.read() as session:
        found = session.scalar(
            sa.select(ClaimRow.result).join(Paper, Paper.id == ClaimRow.paper_id)
            .where(Paper.slug == paper, ClaimRow.name == claim, ClaimRow.verdict.is_not(None))
        )  # fmt: skip
    if not found or found["scale"] != scale:
        raise HTTPException(404, f"There is no recorded result {stem!r} here.")
    return JSONResponse(found)


@router.get("/runs", summary="Runs, the latest first")
def list_runs(site: ASite, p: Number = 0, limit: Limit = feed.PAGE) -> Runs:
    """What was asked to be checked here, and what came of it."""
    with site.database.read() as session:
        rows = session.scalars(sa.select(Run).order_by(Run.id.desc()).offset(p * limit).limit(limit + 1)).all()
        names = ("id", "claim", "scale", "seeds", "state", "verdict", "created_at", "started_at", "finished_at")
        found = [
            RunOut(
                **{name: getattr(row, name) for name in names},
                paper=row.paper.key,
                url=f"{site.settings.public_url}/runs/{row.id}",
            )
            for row in rows[:limit]
        ]
    return Runs(runs=found, p=p, more=len(rows) > limit)


def _invalid(field: str, message: str) -> HTTPException:
    return HTTPException(422, [{"field": f"query.{field}", "message": message}])


def _period(date: str | None, week: str | None, month: str | None) -> feed.Period | None:
    for view, code in (("day", date), ("week", week), ("month", month)):
        if code:
            try:
                return feed.read_period(view, code)
            except feed.Unreadable as error:
                raise _invalid(error.field, str(error)) from None
    return None


def _search(site: Site, session: Session, q: str, p: int, limit: int) -> feed.Listing:
    try:
        return search.search(site, session, parse(q), p, limit)
    except Malformed as error:
        raise _invalid("q", str(error)) from None


def _find(session: Session, key: str) -> Paper:
    try:
        arxiv = arxiv_id(key)
    except ValueError:
        arxiv = ""
    found = session.scalar(sa.select(Paper).where(sa.or_(Paper.slug == key, Paper.arxiv == arxiv)))
    if found is None:
        raise HTTPException(404, f"There is no paper {key[:80]!r} here.")
    return found


def _claims(session: Session, paper: Paper) -> list[ClaimRow]:
    claims = sa.select(ClaimRow).where(ClaimRow.paper_id == paper.id)
    return list(session.scalars(claims.order_by(ClaimRow.position)))


def _papers(site: Site, session: Session, papers: list[Paper]) -> list[PaperOut]:
    submitters = {paper.submitted_by for paper in papers if paper.submitted_by}
    names = dict(session.execute(sa.select(Person.id, Person.name).where(Person.id.in_(submitters))).tuples().all())
    return [_paper(site, paper, names.get(paper.submitted_by or 0)) for paper in papers]


def _paper(site: Site, paper: Paper, submitter: str | None) -> PaperOut:
    published = paper.published_on
    return PaperOut(
        id=paper.arxiv,
        slug=paper.slug,
        url=f"{site.settings.public_url}/papers/{paper.key}",
        title=paper.title,
        summary=paper.summary or paper.abstract,
        abstract=paper.abstract,
        authors=[Author(name=name) for name in paper.names],
        author_count=paper.author_count,
        published_at=datetime.datetime.combine(published, datetime.time(), datetime.timezone.utc)
        if published
        else None,
        submitted_on_daily_at=paper.submitted_at,
        submitted_on_daily_by=User(user=submitter, fullname=submitter) if submitter else None,
        upvotes=paper.votes,
        num_comments=paper.comments + paper.comments_elsewhere,
        comments_elsewhere=paper.comments_elsewhere,
        organization=Organization(name=paper.organisation, fullname=paper.organisation) if paper.organisation else None,
        project_page=paper.project_url,
        github_repo=paper.code_url,
        licence=paper.licence,
        tags=paper.tags,
        runs_here=paper.runs_here,
        verdicts=paper.verdicts,
    )


def _daily(papers: list[PaperOut]) -> list[DailyPaper]:
    return [
        DailyPaper(
            paper=paper,
            published_at=paper.submitted_on_daily_at if paper.published_at else None,
            submitted_on_daily_at=paper.submitted_on_daily_at,
            title=paper.title,
            summary=paper.summary,
            num_comments=paper.num_comments,
            submitted_by=paper.submitted_on_daily_by,
            organization=paper.organization,
            project_page=paper.project_page,
            github_repo=paper.github_repo,
        )
        for paper in papers
    ]


def _claim(site: Site, row: ClaimRow, paper: str) -> ClaimOut:
    measured = None
    if row.result:
        stem = f"{row.result['paper']}.{row.result['claim']}.{row.result['scale']}"
        measured = ResultOut(**row.result, raw=f"{site.settings.public_url}/api/results/{stem}.json")
    return ClaimOut(paper=paper, name=row.name, runnable=row.runnable, verdict=row.verdict, result=measured, **row.card)  # type: ignore[arg-type]
