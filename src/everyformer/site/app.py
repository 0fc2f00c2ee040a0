"""The application: settings in, an ASGI app out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

import everyformer
from everyformer.site.database import Database
from everyformer.site.middleware import Guard, ReaderCache, ReaderLimit
from everyformer.site.routes import (
    account,
    advise,
    api,
    community,
    feed,
    papers,
    runs,
    search,
    subscriptions,
    syndication,
)
from everyformer.site.settings import Settings
from everyformer.site.web import STATIC, Clock, SignInNeeded, Site, check_form, page, utc_now, visitor_of


def create_app(settings: Settings | None = None, *, now: Clock = utc_now) -> FastAPI:
    """The page as an ASGI application; its tables are expected to be there (``Database.migrate``)."""
    settings = settings or Settings()
    site = Site(settings, Database(settings.database_url), now)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # In a thread, so that the first page need not wait for it; the first search finds it done.
        reading = asyncio.create_task(asyncio.to_thread(_read_index, site))
        yield
        await reading
        site.database.close()

    app = FastAPI(
        title="everyformer",
        version=everyformer.__version__,
        summary="Transformer papers with what was measured of them.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
        dependencies=[Depends(check_form)],
    )
    app.state.site = site
    # The text of a paper's page ends in .md and is asked for before the page, whose address takes any ending.
    for module in (feed, syndication, papers, search, advise, community, account, subscriptions, runs, api):
        app.include_router(module.router)
    app.mount("/static", ImmutableFiles(directory=STATIC), name="static")
    app.add_exception_handler(SignInNeeded, _to_sign_in)
    app.add_exception_handler(HTTPException, _failure)
    app.add_exception_handler(RequestValidationError, _invalid)
    # The last one added is the first to see a request.
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=1)
    app.add_middleware(Guard, secure=settings.public_url.startswith("https://"))
    app.add_middleware(ReaderCache, seconds=settings.cache_seconds)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.hosts, www_redirect=False)
    app.add_middleware(ReaderLimit, per_minute=settings.requests_per_minute)
    return app


def _read_index(site: Site) -> None:
    with site.database.read() as session:
        site.semantic.current(session)
    # What is there now stays: looking through it for garbage again and again would stop every reader each time.
    gc.collect()
    gc.freeze()


class ImmutableFiles(StaticFiles):
    """Static files whose address changes with their content."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """As the parent's, to be kept by the browser for a year."""
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def _to_sign_in(request: Request, error: Exception) -> Response:
    from urllib.parse import urlencode

    assert isinstance(error, SignInNeeded)
    address = f"/sign-in?{urlencode({'next': error.back})}"
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={"HX-Redirect": address})
    return Response(status_code=303, headers={"Location": address})


def _failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)
    response = page(
        request,
        "error.html",
        visitor_of(request),
        status=error.status_code,
        heading=HTTPStatus(error.status_code).phrase,
        text=error.detail if error.detail != HTTPStatus(error.status_code).phrase else "",
    )
    response.headers.update(error.headers or {})
    return response


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [
        {"field": ".".join(str(part) for part in item["loc"]), "message": item["msg"]} for item in error.errors()
    ]
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": details}, 422)
    text = "; ".join(f"{item['field'].split('.')[-1]}: {item['message']}" for item in details)
    return page(request, "error.html", visitor_of(request), status=422, heading="This can't be read", text=text)
