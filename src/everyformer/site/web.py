"""What every address needs: who is asking, whether a form is ours, how often is too often, and the page around it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import anyio
import fastapi
import sqlalchemy as sa
from fastapi import Depends, HTTPException, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from everyformer.site import display
from everyformer.site.database import Database
from everyformer.site.models import Person, SignedIn, Spent
from everyformer.site.settings import Settings

if TYPE_CHECKING:
    from everyformer.site.entries import Kept
    from everyformer.site.semantic import Index

SESSION_COOKIE = "everyformer_session"
FORM_COOKIE = "everyformer_form"
SESSION_DAYS = 30
STATIC = Path(__file__).parent / "static"

Clock = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    """The clock of a page that is not under test."""
    return datetime.datetime.now(datetime.timezone.utc)


@dataclasses.dataclass
class Site:
    """What a running page consists of; ``app.state.site``."""

    settings: Settings
    database: Database
    now: Clock = utc_now
    closing: bool = dataclasses.field(default=False, init=False)  # set when the server stops: streams end by themselves

    @functools.cached_property
    def key(self) -> str:
        """The key of every signature."""
        return self.settings.signing_key()

    @functools.cached_property
    def _kept(self) -> dict[Hashable, tuple[float, Any]]:
        return {}

    def remembered(self, name: Hashable, seconds: float, make: Callable[[], Any]) -> Any:
        """``make()``, or what it gave within the last ``seconds``: for what many pages need and readers may get late.

        Nothing is kept where pages are not either.
        """
        kept = self._kept.get(name)
        if kept is None or not self.settings.cache_seconds or time.monotonic() - kept[0] >= seconds:
            if len(self._kept) > 200:
                self._kept.clear()
            kept = self._kept[name] = (time.monotonic(), make())
        return kept[1]

    def signer(self, purpose: str) -> URLSafeTimedSerializer:
        """Signs values for one purpose; a signature for another is not valid here."""
        return URLSafeTimedSerializer(self.key, salt=f"everyformer.{purpose}")

    @functools.cached_property
    def semantic(self) -> Index:
        """The semantic index as this process has it in memory."""
        from everyformer.site.semantic import Index

        return Index()

    @functools.cached_property
    def searching(self) -> anyio.Semaphore:
        """The places of searches in this process."""
        return anyio.Semaphore(2)

    @functools.cached_property
    def entries(self) -> Kept:
        """Pieces of pages that were made lately."""
        from everyformer.site.entries import Kept

        return Kept()

    @functools.cached_property
    def templates(self) -> Environment:
        """Jinja with everything escaped and unknown names refused."""
        environment = Environment(
            loader=PackageLoader("everyformer.site"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        environment.filters |= display.FILTERS
        environment.globals |= {"asset": asset, "settings": self.settings, "display": display}
        return environment


@functools.cache
def asset(name: str) -> str:
    """The address of a static file; it changes with the content, so that browsers may keep it for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


def site_of(request: Request) -> Site:
    """The site that answers ``request``."""
    site: Site = request.app.state.site
    return site


def visitor_of(request: Request) -> Person | None:
    """Who is signed in, or nobody."""
    cookie = request.cookies.get(SESSION_COOKIE)
    if not cookie:
        return None
    site = site_of(request)
    with site.database.read() as session:
        found = session.get(SignedIn, hash_of(cookie))
        return found.person if found and found.expires_at > site.now() else None


# Dependencies. They are coroutines, because FastAPI sends each other function to a thread of its own.


async def the_site(request: Request) -> Site:
    """As :func:`site_of`."""
    return site_of(request)


async def the_visitor(request: Request) -> Person | None:
    """As :func:`visitor_of`; only who has a cookie is looked up."""
    return await run_in_threadpool(visitor_of, request) if SESSION_COOKIE in request.cookies else None


async def person_of(request: Request, visitor: Annotated[Person | None, Depends(the_visitor)]) -> Person:
    """Who is signed in; others are sent to sign in, and come back to where they were."""
    if visitor is None:
        back = request.headers.get("referer", "") if request.method == "POST" else str(request.url)
        raise SignInNeeded(local_address(back, request))
    return visitor


async def curator_of(person: Annotated[Person, Depends(person_of)]) -> Person:
    """The curator who is signed in; 403 for anybody else."""
    if person.role != "curator":
        raise HTTPException(403, "Only curators may do this.")
    return person


async def its_turn(site: Annotated[Site, Depends(the_site)]) -> AsyncIterator[None]:
    """Wait for one of few places: a search works for milliseconds, and many at once would only all be later."""
    async with site.searching:
        yield


ASite = Annotated[Site, Depends(the_site)]
Visitor = Annotated[Person | None, Depends(the_visitor)]
APerson = Annotated[Person, Depends(person_of)]
Curator = Annotated[Person, Depends(curator_of)]
Number = Annotated[int, fastapi.Path(ge=1, lt=2**31)]  # of a row; databases take no larger one


class SignInNeeded(Exception):
    """Raised where only a signed-in person may go; ``back`` is the address to return to."""

    def __init__(self, back: str) -> None:
        self.back = back


def hash_of(value: str) -> str:
    """What the database keeps of a secret that only its owner knows."""
    return hashlib.sha256(value.encode()).hexdigest()


def local_address(address: str, request: Request) -> str:
    """Path and query of ``address`` when it is one of this site, else ``/``: no redirect leads elsewhere."""
    try:
        parts = urlsplit(address)
    except ValueError:  # such as a bracket that is not closed
        return "/"
    if not address.isprintable():  # a database need not take it, nor a header
        return "/"
    if parts.netloc and parts.netloc != request.url.netloc:
        return "/"
    if not parts.path.startswith("/") or parts.path.startswith("//") or "\\" in address:
        return "/"
    return parts.path + (f"?{parts.query}" if parts.query else "")


# Forms. Each carries a signed copy of a cookie's value: another site can send a form here, but cannot read the cookie.


def form_token(request: Request) -> str:
    """The value of the hidden field ``form`` that every form has."""
    value = request.cookies.get(FORM_COOKIE) or getattr(request.state, "form_cookie", None)
    if value is None:
        value = secrets.token_urlsafe(24)
    if FORM_COOKIE not in request.cookies:
        request.state.form_cookie = value  # the middleware sets it
    request.state.has_form = True  # and keeps this page for nobody else: the token belongs to one visitor
    return site_of(request).signer("form").dumps(value)


async def check_form(request: Request) -> None:
    """Refuse whatever changes something and does not come from a form of this page.

    The one exception is ended subscriptions: mail programs post there for their user, and the address is the secret.
    """
    if request.method in ("GET", "HEAD", "OPTIONS") or request.url.path.startswith("/unsubscribe/"):
        return
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "This form came from another site.")
    form = await request.form(max_files=1, max_fields=50)
    cookie = request.cookies.get(FORM_COOKIE, "")
    try:
        value = site_of(request).signer("form").loads(str(form.get("form", "")), max_age=24 * 3600)
    except BadSignature:
        value = None
    if not cookie or not secrets.compare_digest(str(value or ""), cookie):
        raise HTTPException(403, "This form has expired. Go back, load the page again and repeat.")


def allow(site: Site, action: str, who: str, limit: int, seconds: int) -> None:
    """Count ``action`` by ``who`` (an address or an account); 429 beyond ``limit`` in ``seconds``.

    The count is in the database: it holds for all processes and across restarts.
    """
    now = site.now()
    key = f"{action}:{who}"[:200]
    with site.database.write() as session:
        spent = session.get(Spent, key, with_for_update=True)
        if spent is None:
            session.execute(_insert_spent(site.database, key, now))
            return
        if spent.since + datetime.timedelta(seconds=seconds) <= now:
            spent.since, spent.count = now, 1
            return
        if spent.count >= limit:
            wait = int((spent.since + datetime.timedelta(seconds=seconds) - now).total_seconds()) + 1
            raise HTTPException(429, "That was too often. Try again later.", {"Retry-After": str(wait)})
        spent.count += 1


def _insert_spent(database: Database, key: str, now: datetime.datetime) -> sa.Executable:
    """Insert, or count, when another process inserted the same key in the meantime."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = sqlite.insert if database.is_sqlite else postgresql.insert
    statement = insert(Spent).values(key=key, since=now, count=1)
    return statement.on_conflict_do_update(index_elements=["key"], set_={"count": Spent.count + 1})


def address_of(request: Request) -> str:
    """The visitor's network address, as the server believes it."""
    return request.client.host if request.client else "unknown"


# Pages.

NOTICES = {
    "run-queued": "The run is queued.",
    "run-under-way": "This run is under way already.",
    "run-cancelled": "The run is being cancelled.",
    "run-over": "The run was over already.",
    "signed-out": "You are signed out.",
    "signed-out-everywhere": "You are signed out everywhere.",
    "signed-in": "You are signed in.",
    "welcome": "You are signed in. The name that others see can be changed on your account.",
    "submitted": "It is on the page now. Thank you.",
    "known": "It is here already.",
    "renamed": "Your name is changed.",
    "account-deleted": "Your account is deleted.",
    "comment-deleted": "The comment is deleted.",
    "digest-ended": "The digest is ended.",
}


def page(
    request: Request, template: str, visitor: Person | None = None, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """A page from ``template``; ``?said=`` names a notice to show above it."""
    site = site_of(request)
    said = request.query_params.get("said", "")
    text = site.templates.get_template(template).render(
        request=request,
        visitor=visitor,
        now=site.now(),
        today=site.now().date(),
        notice=NOTICES.get(said, ""),
        form_token=functools.partial(form_token, request),
        is_htmx="hx-request" in request.headers,
        **values,
    )
    return HTMLResponse(text, status)


# A plot is opened by itself too, where its own style must be allowed; nothing else is.
PLOT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


def plot(file: Path, seconds: int) -> Response:
    """A plot that browsers may keep for so many seconds; 404 when there is none."""
    if not file.is_file():
        raise HTTPException(404, "There is no such plot.")
    headers = {"content-security-policy": PLOT_POLICY, "cache-control": f"public, max-age={seconds}"}
    return FileResponse(file, media_type="image/svg+xml", headers=headers)


def see_other(address: str, said: str = "") -> Response:
    """After a form: go to ``address``, with a notice there in place of an earlier one."""
    parts = urlsplit(address)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "said"]
    if said:
        query.append(("said", said))
    return RedirectResponse(urlunsplit(parts._replace(query=urlencode(query))), 303)
