"""Around every answer: security headers, a limit to bodies, a limit to readers, and a short memory for their pages."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from http.cookies import SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everyformer.site.web import FORM_COOKIE, SESSION_COOKIE

LARGEST_BODY = 2 * 2**20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
    "manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """Sets the headers of every answer and the cookie of forms, and refuses bodies that are too large."""

    def __init__(self, app: ASGIApp, secure: bool) -> None:
        self.app, self.secure = app, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # PostgreSQL takes no such character; as in HTML, it counts as the sign for an unknown one.
        scope["path"] = scope["path"].replace("\0", "\ufffd")
        scope["query_string"] = scope["query_string"].replace(b"%00", b"%EF%BF%BD")
        # Answered like GET, without the body; a stream of events has no other part.
        head = scope["method"] == "HEAD" and not scope["path"].endswith("/events")
        if head:
            scope["method"] = "GET"
        received = 0
        too_large = f"The body may have {LARGEST_BODY:,} bytes at most."
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            await PlainTextResponse(f"{too_large}\n", 413)(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST_BODY:
                raise HTTPException(413, too_large)  # more came than was announced
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self.secure:
                    headers.setdefault("strict-transport-security", "max-age=31536000")
                if cookie := scope.get("state", {}).get("form_cookie"):
                    flags = "; Secure" if self.secure else ""
                    headers.append("set-cookie", f"{FORM_COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Lax{flags}")
                headers.setdefault("cache-control", "private, no-cache")
            elif head:
                message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
            await send(message)

        await self.app(scope, counted, with_headers)


class ReaderLimit:
    """So many requests a minute for one address, by a bucket that refills; one process counts for itself."""

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self.app, self.per_minute = app, per_minute
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.per_minute or scope["path"].startswith("/static/"):
            await self.app(scope, receive, send)
            return
        who = scope["client"][0] if scope.get("client") else "unknown"
        now = time.monotonic()
        left, at = self.buckets.pop(who, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - at) * self.per_minute / 60)
        allowed = left >= 1
        self.buckets[who] = (left - allowed, now)
        while len(self.buckets) > 10_000:
            self.buckets.popitem(last=False)
        if allowed:
            await self.app(scope, receive, send)
        else:
            wait = str(int(60 / self.per_minute) + 1)
            await PlainTextResponse("Too many requests.\n", 429, {"Retry-After": wait})(scope, receive, send)


class ReaderCache:
    """Answers to readers who are not signed in are remembered for a second or so.

    Such a page is the same for all of them. However many ask, each address is made once in that time; while it is made,
    the others wait for it. An answer that holds a form, sets a cookie, streams or failed is not remembered.
    """

    LARGEST = 512

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self.seconds = app, seconds
        self.kept: OrderedDict[tuple[object, ...], tuple[float, list[Message]]] = OrderedDict()
        self.in_work: dict[tuple[object, ...], asyncio.Future[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            self.kept.clear()  # whoever changed something sees it at once
            return
        headers = Headers(scope=scope)
        cookies = SimpleCookie(headers.get("cookie", ""))
        path = scope["path"]
        if not self.seconds or SESSION_COOKIE in cookies or path.startswith("/static/") or path.endswith("/events"):
            await self.app(scope, receive, send)
            return
        key = (
            scope["method"], path, scope["query_string"], headers.get("host"), "hx-request" in headers,
            "gzip" in headers.get("accept-encoding", ""), headers.get("accept"),
        )  # fmt: skip
        if (working := self.in_work.get(key)) is not None:
            await working
        kept = self.kept.get(key)
        if kept and time.monotonic() - kept[0] < self.seconds:
            for message in kept[1]:
                await send(message)
            return
        done = self.in_work[key] = asyncio.get_running_loop().create_future()
        try:
            await self._make(key, scope, receive, send)
        finally:
            if self.in_work.get(key) is done:
                del self.in_work[key]
            done.set_result(None)

    async def _make(self, key: tuple[object, ...], scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = []

        async def noted(message: Message) -> None:
            messages.append(message)
            await send(message)

        await self.app(scope, receive, noted)
        if messages and messages[0].get("status") == 200 and len(messages) <= 3:
            if scope.get("state", {}).get("has_form") or any(
                name == b"set-cookie" for name, _ in messages[0]["headers"]
            ):
                return
            self.kept.pop(key, None)
            self.kept[key] = (time.monotonic(), messages)
            while len(self.kept) > self.LARGEST:
                self.kept.popitem(last=False)
