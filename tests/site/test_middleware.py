"""Around every answer: headers, hosts, limits, and the short memory for readers."""

import asyncio
import threading

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse

from everyformer.site.middleware import LARGEST_BODY, ReaderCache
from everyformer.site.web import SESSION_COOKIE

from .conftest import open_page, plain_settings


@pytest.mark.parametrize("path", ["/", "/static/style.css", "/nothing", "/api/papers", "/papers/none"])
def test_every_answer_has_the_security_headers(site_page, path):
    headers = site_page.client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in policy


def test_another_host_is_refused(site_page):
    assert site_page.client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert site_page.client.get("/", headers={"host": "localhost:8000"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/papers/%00",
        "/?tag=%00",
        "/search?q=%00",
        "/api/papers/%00",
        "/api/daily_papers?submitter=%00",
        "/feed.atom?tag=%00",
    ],
)
def test_a_null_character_in_an_address_breaks_nothing(any_page, path):
    assert any_page.client.get(path).status_code < 500


def test_head_is_get_without_the_body(site_page):
    get, head = site_page.client.get("/"), site_page.client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(site_page):
    def stream():
        for _ in range(LARGEST_BODY // 65536 + 2):
            yield b"x" * 65536

    assert site_page.client.post("/sign-in", content=b"x" * (LARGEST_BODY + 1)).status_code == 413
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert site_page.client.post("/sign-in", content=stream(), headers=form).status_code == 413


def test_a_reader_who_asks_too_often_waits(tmp_path, clock):
    settings = plain_settings(tmp_path)
    settings.requests_per_minute = 5
    for page in open_page(settings, clock):
        answers = [page.client.get("/") for _ in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
        assert int(answers[-1].headers["retry-after"]) > 0
        assert page.client.get("/static/style.css").status_code == 200


def test_readers_share_a_page_and_writers_see_their_change(tmp_path, clock):
    settings = plain_settings(tmp_path)
    settings.cache_seconds = 60
    for page in open_page(settings, clock):
        page.add_paper("2601.00001", title="The first")
        assert "The first" in page.client.get("/").text
        page.add_paper("2601.00002", title="The second")
        assert "The second" not in page.client.get("/").text
        assert "The second" in page.client.get("/?view=newest").text
        signed_in = page.visitor()
        page.sign_in(client=signed_in)
        assert "The second" in signed_in.get("/").text
        assert "ada" in signed_in.get("/").text
        assert "ada" not in page.client.get("/").text
        signed_in.post("/papers/2601.00001/vote", data=page.form(signed_in, vote="up"))
        assert "The second" in page.client.get("/").text


def test_an_address_is_made_once_however_many_ask():
    made = 0
    lock = threading.Lock()

    async def app(scope, receive, send):
        nonlocal made
        with lock:
            made += 1
        await asyncio.sleep(0.05)
        await PlainTextResponse("page")(scope, receive, send)

    async def ask():
        transport = httpx.ASGITransport(ReaderCache(app, seconds=60))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await asyncio.gather(*(client.get("/") for _ in range(20)))

    answers = asyncio.run(ask())
    assert [answer.text for answer in answers] == ["page"] * 20
    assert made == 1


def test_a_failure_is_not_remembered():
    states = iter([500, 200])

    async def app(scope, receive, send):
        await PlainTextResponse("x", next(states))(scope, receive, send)

    client = TestClient(ReaderCache(app, seconds=60))
    assert [client.get("/").status_code for _ in range(3)] == [500, 200, 200]


def test_a_signed_in_page_is_never_kept():
    count = iter(range(10))

    async def app(scope, receive, send):
        await PlainTextResponse(str(next(count)))(scope, receive, send)

    client = TestClient(ReaderCache(app, seconds=60), cookies={SESSION_COOKIE: "x"})
    assert [client.get("/").text for _ in range(3)] == ["0", "1", "2"]
