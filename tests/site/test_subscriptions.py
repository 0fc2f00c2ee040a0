"""Subscriptions: asked for, confirmed, ended."""

import re

import pytest
import sqlalchemy as sa

from everyformer.site.models import Subscription


def ask(page, email="ada@example.org", client=None, **fields):
    client = client or page.client
    values = {"email": email, "scope": "all", "value": "", "period": "day"} | fields
    return client.post("/subscribe", data=page.form(client, **values))


def path_in(message, begins="/subscribe/confirm/"):
    text = message.get_body(("plain",)).get_content()
    return re.search(rf"http://127.0.0.1:8000({begins}\S+)", text)[1]


def confirmed(page, email="ada@example.org", **fields):
    ask(page, email, **fields)
    path = path_in(page.letters()[-1])
    assert page.client.post(path, data=page.form()).status_code == 200
    return path


def active(page):
    with page.database.read() as session:
        return [one.active for one in session.scalars(sa.select(Subscription).order_by(Subscription.id))]


def end_path(page):
    with page.database.read() as session:
        one = session.scalars(sa.select(Subscription)).first()
        token = page.site.signer("subscription").dumps([one.id, one.created_at.isoformat()])
    return f"/unsubscribe/{token}"


def test_nothing_begins_before_the_link_is_pressed(any_page):
    assert ask(any_page).headers["location"] == "/subscribe/sent"
    [message] = any_page.letters()
    assert active(any_page) == [False]
    path = path_in(message)
    assert "all papers" in any_page.client.get(path).text
    assert active(any_page) == [False]  # opening it is not enough
    assert "You are subscribed" in any_page.client.post(path, data=any_page.form()).text
    assert active(any_page) == [True]
    any_page.client.post(path, data=any_page.form())
    assert active(any_page) == [True]


def test_a_link_to_confirm_expires(site_page):
    ask(site_page)
    path = path_in(site_page.letters()[0])
    site_page.clock.forward(days=7)
    assert site_page.client.get(path).status_code == 410
    assert site_page.client.post(path, data=site_page.form()).status_code == 410
    assert active(site_page) == [False]


def test_nobody_else_changes_how_often(site_page):
    confirmed(site_page, period="day")
    ask(site_page, period="week", client=site_page.visitor())
    with site_page.database.read() as session:
        assert session.scalars(sa.select(Subscription.period)).all() == ["day"]
    path = path_in(site_page.letters()[-1])
    site_page.client.post(path, data=site_page.form())
    with site_page.database.read() as session:
        assert session.scalars(sa.select(Subscription.period)).all() == ["week"]


def test_the_answer_does_not_tell_who_is_subscribed(site_page):
    confirmed(site_page)
    answers = []
    for email in ("ada@example.org", "nobody@example.org"):
        answer = ask(site_page, email, client=site_page.visitor())
        answers.append((answer.status_code, answer.headers["location"], answer.text))
    assert answers[0] == answers[1]
    assert len(site_page.letters()) == 3


def test_a_mail_program_ends_it_with_one_request(any_page):
    confirmed(any_page)
    program = any_page.visitor()
    answer = program.post(end_path(any_page), data={"List-Unsubscribe": "One-Click"})
    assert answer.status_code == 200
    assert active(any_page) == [False]


def test_opening_the_link_does_not_end_it_and_the_button_does_as_often_as_pressed(site_page):
    confirmed(site_page)
    path = end_path(site_page)
    assert "End this digest?" in site_page.client.get(path).text
    assert active(site_page) == [True]
    for _ in range(3):
        answer = site_page.client.post(path)
        assert answer.status_code == 200 and "This digest is ended" in answer.text
    assert "This digest is ended" in site_page.client.get(path).text
    assert active(site_page) == [False]


def test_an_ended_digest_can_begin_again(site_page):
    confirmed(site_page)
    site_page.client.post(end_path(site_page))
    confirmed(site_page)
    assert active(site_page) == [True]


def test_a_link_that_is_cut_ends_nothing_and_is_explained(site_page):
    confirmed(site_page)
    path = end_path(site_page)
    for cut in (path[:-1], path[:20], "/unsubscribe/x"):
        answer = site_page.client.post(cut)
        assert answer.status_code == 404 and "This link is not complete" in answer.text
    assert active(site_page) == [True]


def test_a_link_outlives_its_subscription(site_page):
    confirmed(site_page)
    path = end_path(site_page)
    with site_page.database.write() as session:
        session.execute(sa.delete(Subscription))
    site_page.clock.forward(days=1)
    confirmed(site_page, "bob@example.org")  # gets the same number
    answer = site_page.client.post(path)
    assert answer.status_code == 200 and "This digest is ended" in answer.text
    assert active(site_page) == [True]


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"email": "ada"}, "email"),
        ({"email": "ada@example.org\r\nBcc: eve@example.org"}, "email"),
        ({"scope": "some"}, "scope"),
        ({"period": "hour"}, "period"),
        ({"scope": "tag", "value": ""}, "value"),
        ({"scope": "tag", "value": "no such tag"}, "value"),
        ({"scope": "tag", "value": "a\0b"}, "value"),
        ({"scope": "query", "value": " "}, "value"),
        ({"scope": "query", "value": '"open'}, "value"),
        ({"scope": "query", "value": "x" * 401}, "value"),
        ({"scope": "query", "value": "verdict:never"}, "value"),
    ],
)
def test_what_cannot_be_sent_is_explained_at_its_field(any_page, fields, field):
    answer = ask(any_page, **fields)
    assert answer.status_code == 422
    assert f'id="wrong-{field}"' in answer.text
    assert f'aria-describedby="wrong-{field}"' in answer.text or field in ("scope", "period")
    assert active(any_page) == []


def test_the_form_begins_with_the_search_it_came_from(site_page):
    text = site_page.client.get("/subscribe", params={"scope": "query", "value": '"linear <attention>"'}).text
    assert 'value="query" checked' in text
    assert "&#34;linear &lt;attention&gt;&#34;" in text


def test_tags_and_searches_are_kept_apart(site_page):
    site_page.add_paper(tags=["vision"])
    for fields in ({"scope": "tag", "value": "Vision"}, {"scope": "query", "value": "linear  attention"}, {}):
        confirmed(site_page, **fields)
    with site_page.database.read() as session:
        found = session.scalars(sa.select(Subscription).order_by(Subscription.id)).all()
    assert [(one.scope, one.value) for one in found] == [("tag", "vision"), ("query", "linear attention"), ("all", "")]


def test_mail_to_one_address_is_limited_whatever_it_is_for(site_page):
    states = [ask(site_page).status_code for _ in range(3)]
    states += [
        site_page.client.post("/sign-in", data=site_page.form(email="ada@example.org")).status_code for _ in range(3)
    ]
    assert states == [303] * 5 + [429]
