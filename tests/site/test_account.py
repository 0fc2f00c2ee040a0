"""Signing in by a mailed link, and the account."""

import re
import threading

import pytest
import sqlalchemy as sa

from everyformer.site import people
from everyformer.site.models import Comment, Mail, Paper, Person, SignedIn, SignInLink, Subscription, Vote
from everyformer.site.web import FORM_COOKIE, SESSION_COOKIE

from .conftest import open_page, plain_settings


def ask(page, email="ada@example.org", client=None, **fields):
    client = client or page.client
    return client.post("/sign-in", data=page.form(client, email=email, **fields))


def link_in(message):
    return re.search(r"http://127.0.0.1:8000(/\S+)", message.get_body(("plain",)).get_content())[1]


def form_of(text):
    return {"form": re.search(r'name="form" value="([^"]+)"', text)[1]}


def press(client, path):
    """Open a link and press its button."""
    return client.post(path, data=form_of(client.get(path).text))


def test_a_link_by_mail_signs_in_and_leads_back(any_page):
    assert ask(any_page, next="/papers/x?p=1").headers["location"] == "/sign-in/sent"
    [message] = any_page.letters()
    assert message["to"] == "ada@example.org"
    answer = press(any_page.client, link_in(message))
    assert (answer.status_code, answer.headers["location"]) == (303, "/papers/x?p=1&said=welcome")
    assert "ada@example.org" in any_page.client.get("/account").text


def test_the_name_that_others_see_is_not_the_address(site_page):
    ask(site_page)
    press(site_page.client, link_in(site_page.letters()[0]))
    with site_page.database.read() as session:
        assert session.scalars(sa.select(Person.name)).one() == "reader 1"


def test_opening_the_link_does_not_use_it(site_page):
    ask(site_page)
    path = link_in(site_page.letters()[0])
    for _ in range(3):
        assert "ada@example.org" in site_page.client.get(path).text
    assert press(site_page.client, path).status_code == 303


def test_a_link_is_good_once(site_page):
    ask(site_page)
    path = link_in(site_page.letters()[0])
    assert press(site_page.client, path).status_code == 303
    other = site_page.visitor()
    answer = other.post(path, data=site_page.form(other))
    assert answer.status_code == 410
    assert "Get another link" in answer.text
    assert SESSION_COOKIE not in other.cookies


def test_a_link_expires(site_page):
    ask(site_page)
    path = link_in(site_page.letters()[0])
    site_page.clock.forward(minutes=15)
    assert site_page.client.get(path).status_code == 410
    assert site_page.client.post(path, data=site_page.form()).status_code == 410


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: "x" + t, lambda t: t.replace(".", "", 1), lambda t: "x"]
)
def test_a_changed_link_is_refused(site_page, change):
    ask(site_page)
    token = link_in(site_page.letters()[0]).rpartition("/")[2]
    assert site_page.client.post(f"/sign-in/{change(token)}", data=site_page.form()).status_code == 410


def test_a_signature_for_something_else_signs_nobody_in(site_page):
    ask(site_page)
    with site_page.database.read() as session:
        link = session.scalars(sa.select(SignInLink)).one()
    token = site_page.site.signer("subscription").dumps([link.id, link.created_at.isoformat()])
    assert site_page.client.post(f"/sign-in/{token}", data=site_page.form()).status_code == 410


def test_an_old_link_is_not_good_for_a_new_row_with_its_number(site_page):
    ask(site_page, "mallory@example.org")
    old = link_in(site_page.letters()[0])
    site_page.clock.forward(days=2)
    people.tidy(site_page.site)
    ask(site_page, "ada@example.org")
    with site_page.database.read() as session:
        assert session.scalars(sa.select(SignInLink.id)).all() == [1]
    assert site_page.client.post(old, data=site_page.form()).status_code == 410


def test_of_two_who_press_at_once_one_gets_in(any_page):
    ask(any_page)
    token = link_in(any_page.letters()[0]).rpartition("/")[2]
    start = threading.Barrier(8)
    entered = []

    def enter():
        start.wait()
        entered.append(people.enter(any_page.site, token))

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in entered if one]) == 1
    with any_page.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(SignedIn)) == 1


def test_the_answer_does_not_tell_who_has_an_account(site_page):
    site_page.sign_in("ada@example.org", client=site_page.visitor())
    answers = []
    for email in ("ada@example.org", "nobody@example.org"):
        visitor = site_page.visitor()
        answer = ask(site_page, email, client=visitor)
        answers.append((answer.status_code, answer.text, answer.headers["location"], visitor.get("/sign-in/sent").text))
    assert answers[0] == answers[1]
    assert [message["to"] for message in site_page.letters()] == ["ada@example.org", "nobody@example.org"]


def test_the_link_leads_nowhere_else(site_page):
    for number, place in enumerate(("https://evil.example/", "//evil.example", "/\\evil.example", "http://[", "/a\0b")):
        ask(site_page, f"a{number}@example.org", next=place)
        assert press(site_page.visitor(), link_in(site_page.letters()[-1])).headers["location"] == "/?said=welcome"


def test_the_cookie_is_kept_from_scripts_and_the_database_has_only_its_hash(site_page):
    ask(site_page)
    answer = press(site_page.client, link_in(site_page.letters()[0]))
    cookies = {cookie.partition("=")[0]: cookie.lower() for cookie in answer.headers.get_list("set-cookie")}
    for name in (SESSION_COOKIE, FORM_COOKIE):
        assert "httponly" in cookies[name] and "samesite=lax" in cookies[name] and "secure" not in cookies[name]
    value = re.match(r"[^=]+=([^;]+)", answer.headers.get_list("set-cookie")[0])[1]
    with site_page.database.read() as session:
        assert value not in session.scalars(sa.select(SignedIn.hash)).one()


def test_cookies_are_secure_where_the_page_is(tmp_path, clock):
    for page in open_page(plain_settings(tmp_path, public_url="https://127.0.0.1:8000"), clock):
        client = page.visitor()
        client.base_url = "https://127.0.0.1:8000"
        ask(page, client=client)
        [message] = page.letters()
        path = re.search(r"https://127.0.0.1:8000(/\S+)", message.get_body(("plain",)).get_content())[1]
        answer = client.post(path, data=page.form(client))
        assert all("secure" in cookie.lower() for cookie in answer.headers.get_list("set-cookie"))


def test_a_session_ends_after_thirty_days(site_page):
    site_page.sign_in()
    assert site_page.client.get("/account").status_code == 200
    site_page.clock.forward(days=30, seconds=1)
    assert site_page.client.get("/account").headers["location"].startswith("/sign-in?next=")


def test_forms_from_before_signing_in_are_void(site_page):
    ask(site_page)
    before = form_of(site_page.client.get("/sign-in").text)
    site_page.client.cookies.clear()
    press(site_page.client, link_in(site_page.letters()[0]))
    assert site_page.client.post("/account", data={"name": "Ada", **before}).status_code == 403


def test_signing_out_ends_this_session_and_everywhere_ends_all(site_page):
    devices = [site_page.visitor() for _ in range(3)]
    for device in devices:
        ask(site_page)
        press(device, link_in(site_page.letters()[-1]))
    devices[0].post("/sign-out", data=form_of(devices[0].get("/account").text))
    assert [device.get("/account").status_code for device in devices] == [303, 200, 200]
    devices[1].post("/sign-out/everywhere", data=form_of(devices[1].get("/account").text))
    assert [device.get("/account").status_code for device in devices] == [303, 303, 303]


def test_a_role_follows_the_settings_at_every_sign_in(tmp_path, clock):
    settings = plain_settings(tmp_path, curators="Ada@example.org, bob@example.org")
    for page in open_page(settings, clock):
        for curators, role in (("ada@example.org", "curator"), ("", "reader")):
            settings.curators = curators
            ask(page)
            press(page.visitor(), link_in(page.letters()[-1]))
            with page.database.read() as session:
                assert session.scalars(sa.select(Person.role)).one() == role


def test_who_starts_the_page_gets_a_curators_link(site_page):
    path = people.curator_link(site_page.site).removeprefix("http://127.0.0.1:8000")
    assert press(site_page.client, path).status_code == 303
    assert "curator@localhost, curator" in site_page.client.get("/account").text
    assert site_page.visitor().get(path).status_code == 410
    # Nobody gets there by the form.
    assert ask(site_page, people.LOCAL_CURATOR, client=site_page.visitor()).status_code == 422


@pytest.mark.parametrize(
    "address",
    [
        "", "ada", "ada@", "@example.org", "ada@example", "a@b@example.org", "ada@exam ple.org", "ada@example.org\n",
        "ada@example.org\r\nBcc: eve@example.org", "ada@-example.org", "ada@example..org", ".ada@example.org",
        "ada.@example.org", "a..da@example.org", "ada@example.org,eve@example.org", "<ada@example.org>", "ada@[127.0.0.1]",
        "ada@127.0.0.1", "a\0da@example.org", "ädä@example.org", '"ada"@example.org', "a" * 65 + "@example.org",
        "ada@" + "a" * 64 + ".org", "ada@" + "a." * 125 + "org",
    ],
)  # fmt: skip
def test_what_is_not_an_address_is_refused_and_comes_back(site_page, address):
    answer = ask(site_page, address)
    assert answer.status_code == 422
    assert "not an email address" in answer.text
    assert site_page.letters() == []


@pytest.mark.parametrize(
    "address", ["Ada@Example.org", "ada+x@example.org", "o'hara@a.b-c.example.org", "a@b.xn--p1ai"]
)
def test_addresses_are_kept_in_lower_case(address):
    assert people.read_address(f" {address} ") == address.lower()


def test_mail_to_one_address_and_from_one_visitor_is_limited(site_page):
    answers = [ask(site_page) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [303] * 5 + [429]
    assert int(answers[-1].headers["retry-after"]) > 0
    assert len(site_page.letters()) == 5
    others = [ask(site_page, f"a{number}@example.org").status_code for number in range(30)]
    assert others.count(429) > 0
    site_page.clock.forward(hours=1)
    assert ask(site_page).status_code == 303


def test_a_name_is_changed_or_refused(site_page):
    site_page.sign_in()
    assert site_page.client.post("/account", data=site_page.form(name="  Ada   Lovelace ")).status_code == 303
    assert 'value="Ada Lovelace"' in site_page.client.get("/account").text
    for name in ("", "  ", "a" * 81, "a\x00b", "a\u202eb", "\u200d"):
        assert site_page.client.post("/account", data=site_page.form(name=name)).status_code == 422
    answer = site_page.client.post("/account", data=site_page.form(name="<b>&"))
    assert answer.status_code == 303
    assert "&lt;b&gt;&amp;" in site_page.client.get("/account").text


def test_the_account_is_exported_whole(site_page):
    paper = site_page.add_paper()
    site_page.sign_in()
    client = site_page.client
    client.post(f"/papers/{paper.key}/vote", data=site_page.form(vote="up"))
    client.post(f"/papers/{paper.key}/save", data=site_page.form(save="yes"))
    client.post(f"/papers/{paper.key}/comments", data=site_page.form(text="It *runs*"))
    data = client.get("/account/data.json").json()
    assert data["email"] == "ada@example.org"
    assert [vote["arxiv"] for vote in data["votes"]] == [vote["arxiv"] for vote in data["saved"]] == ["2502.10389"]
    assert data["comments"][0]["text"] == "It *runs*"
    assert paper.title in client.get("/account").text


def test_a_deleted_account_leaves_right_counts_and_the_replies_of_others(any_page):
    paper = any_page.add_paper()
    bob = any_page.visitor()
    any_page.sign_in("ada@example.org")
    any_page.sign_in("bob@example.org", client=bob)
    for client in (any_page.client, bob):
        client.post(f"/papers/{paper.key}/vote", data=any_page.form(client, vote="up"))
    any_page.client.post(f"/papers/{paper.key}/comments", data=any_page.form(text="A secret of mine"))
    bob.post(f"/papers/{paper.key}/comments", data=any_page.form(bob, text="A reply", parent="1"))
    with any_page.database.write() as session:
        session.add(
            Subscription(email="ada@example.org", scope="all", period="day", created_at=any_page.clock(), value="")
        )
    answer = any_page.client.post("/account/delete", data=any_page.form())
    assert answer.headers["location"] == "/?said=account-deleted"
    with any_page.database.read() as session:
        assert session.scalars(sa.select(Person.email)).all() == ["bob@example.org"]
        assert session.scalar(sa.select(sa.func.count()).select_from(Vote)) == 1
        for table in (Subscription, Mail, SignInLink):
            assert session.scalar(sa.select(sa.func.count()).select_from(table)) == 0
        assert session.scalars(sa.select(Comment.markdown).order_by(Comment.id)).all() == ["", "A reply"]
        kept = session.scalars(sa.select(Paper)).one()
        assert (kept.votes, kept.comments, kept.points) == (1, 1, 1.5)
    text = bob.get(f"/papers/{paper.key}").text
    assert "A secret of mine" not in text
    assert "A reply" in text


def test_a_digest_of_somebody_else_is_not_ended(site_page):
    with site_page.database.write() as session:
        for email in ("ada@example.org", "bob@example.org"):
            now = site_page.clock()
            session.add(
                Subscription(email=email, scope="all", value="", period="day", created_at=now, confirmed_at=now)
            )
    site_page.sign_in()
    assert "all papers, every day" in site_page.client.get("/account").text
    assert site_page.client.post("/account/subscriptions/2/end", data=site_page.form()).status_code == 404
    assert site_page.client.post("/account/subscriptions/1/end", data=site_page.form()).status_code == 303
    with site_page.database.read() as session:
        assert [one.active for one in session.scalars(sa.select(Subscription).order_by(Subscription.id))] == [
            False,
            True,
        ]


def test_who_is_not_signed_in_is_sent_to_sign_in_and_back(site_page):
    assert site_page.client.get("/account").headers["location"] == "/sign-in?next=%2Faccount"
    answer = site_page.client.post(
        "/account", data=site_page.form(name="x"), headers={"referer": "http://evil.example/"}
    )
    assert answer.headers["location"] == "/sign-in?next=%2F"
