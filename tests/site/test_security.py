"""What others must not be able to do with the forms of this page."""

import re

import pytest

from everyformer.site.web import FORM_COOKIE, SESSION_COOKIE

from .conftest import open_page, plain_settings

FORMS = [
    ("/sign-in", {"email": "ada@example.org"}),
    ("/sign-in/token", {}),
    ("/sign-out", {}),
    ("/sign-out/everywhere", {}),
    ("/account", {"name": "Eve"}),
    ("/account/delete", {}),
    ("/account/subscriptions/1/end", {}),
    ("/papers/2502.10389/vote", {"vote": "up"}),
    ("/papers/2502.10389/save", {"save": "yes"}),
    ("/papers/2502.10389/comments", {"text": "spam"}),
    ("/comments/1/edit", {"text": "spam"}),
    ("/comments/1/delete", {}),
    ("/submit", {"arxiv": "2502.10389"}),
    ("/subscribe", {"email": "ada@example.org"}),
    ("/subscribe/confirm/token", {}),
]


@pytest.mark.parametrize("path, fields", FORMS)
def test_every_form_needs_its_token(site_page, path, fields):
    site_page.add_paper()
    site_page.sign_in()
    client = site_page.client
    assert client.post(path, data=fields).status_code == 403
    ours = site_page.form(**fields)
    foreign = site_page.site.signer("form").dumps("somebody else's cookie")
    otherwise = site_page.site.signer("sign-in").dumps("form-cookie")
    for token in ("", "x", "form-cookie", foreign, otherwise, ours["form"][:-2]):
        assert client.post(path, data={**fields, "form": token}).status_code == 403, token
    assert client.post(path, data=ours, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post(path, data=ours, headers={"sec-fetch-site": "same-site"}).status_code == 403
    assert client.post(path, data=ours).status_code != 403 or path.startswith("/comments")


def test_a_form_that_is_a_day_old_is_refused_with_a_word(site_page, monkeypatch):
    site_page.sign_in()
    from itsdangerous.timed import TimestampSigner

    with monkeypatch.context() as patch:
        now = TimestampSigner.get_timestamp
        patch.setattr(TimestampSigner, "get_timestamp", lambda self: now(self) - 24 * 3600 - 60)
        old = site_page.form(name="Ada")
    answer = site_page.client.post("/account", data=old)
    assert answer.status_code == 403
    assert "expired" in answer.text


def test_a_token_without_the_cookie_is_nothing(site_page):
    data = site_page.form(email="ada@example.org")
    assert site_page.visitor().post("/sign-in", data=data).status_code == 403


def test_no_visitor_gets_the_form_of_another(tmp_path, clock):
    settings = plain_settings(tmp_path)
    settings.cache_seconds = 60
    for page in open_page(settings, clock):
        token = re.compile(r'name="form" value="([^"]+)"')
        first, second = page.visitor(), page.visitor()
        for client in (first, second):
            client.get("/sign-in")  # now both have a cookie, and no page sets another
        read = page.site.signer("form").loads
        for client in (first, second):
            found = token.search(client.get("/sign-in").text)[1]
            assert read(found) == client.cookies[FORM_COOKIE]


def test_a_made_up_session_is_nobody(site_page):
    site_page.sign_in()
    for cookie in ("", "x", "cookie-of-bob@example.org", "a" * 5000):
        client = site_page.visitor()
        client.cookies.set(SESSION_COOKIE, cookie)
        assert client.get("/account").status_code == 303


@pytest.mark.parametrize(
    "path", ["/sign-in", "/sign-in/x", "/account", "/subscribe", "/unsubscribe/x", "/submit", "/digest"]
)
def test_every_answer_has_the_headers_and_no_inline_code(site_page, path):
    site_page.sign_in()
    for client in (site_page.client, site_page.visitor()):
        answer = client.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "private, no-cache"
        assert re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)", answer.text) is None


@pytest.mark.parametrize(
    "place", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_no_redirect_leads_elsewhere(site_page, place):
    site_page.add_paper()
    site_page.sign_in()
    client = site_page.client
    assert client.get("/sign-in", params={"next": place}).headers["location"] == "/"
    headers = {"referer": place}
    answer = client.post("/papers/2502.10389/vote", data=site_page.form(vote="up"), headers=headers)
    assert answer.headers["location"] == "/#p-1"
    answer = site_page.visitor().get("/sign-in", params={"next": place})
    assert 'name="next" value="/"' in answer.text


@pytest.mark.parametrize("path", ["/account", "/account/delete", "/account/data.json", "/submit", "/comments/1/edit"])
def test_personal_pages_need_a_person(site_page, path):
    assert site_page.client.get(path).headers["location"].startswith("/sign-in?next=")


def test_numbers_that_no_row_can_have_are_refused(any_page):
    any_page.sign_in()
    for number in ("0", "-1", "2147483648", "9" * 40, "x"):
        assert any_page.client.get(f"/comments/{number}/edit").status_code in (404, 422)
        data = any_page.form()
        assert any_page.client.post(f"/account/subscriptions/{number}/end", data=data).status_code in (404, 422)


@pytest.mark.parametrize("field", ["text", "name", "email", "next", "vote", "parent", "value", "arxiv", "action"])
def test_a_null_character_breaks_nothing(any_page, field):
    any_page.add_paper()
    any_page.sign_in()
    for path, fields in FORMS:
        answer = any_page.client.post(path, data=any_page.form(**{**fields, field: "a\0b"}))
        assert answer.status_code < 500
        if path.startswith(("/sign-out", "/account/delete")):
            any_page.sign_in()
