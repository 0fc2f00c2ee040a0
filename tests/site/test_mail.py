"""The outbox, through a real mail server."""

import asyncio
import contextlib
import email
import email.policy
import re
import socket
import stat
import threading

import pytest
import sqlalchemy as sa
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from everyformer.site import mail, people
from everyformer.site.models import Mail

from .conftest import open_page, plain_settings


class Server:
    """Takes mail and keeps it; ``answers`` are what it says first, one a message."""

    def __init__(self):
        self.messages, self.answers, self.at_recipient = [], [], {}

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.at_recipient:
            return self.at_recipient[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        answer = self.answers.pop(0) if self.answers else "250 OK"
        if answer.startswith("250"):
            message = email.message_from_bytes(envelope.content, policy=email.policy.default)
            self.messages.append((envelope.mail_from, envelope.rcpt_tos, message))
        return answer


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(server, port=None, **options):
    controller = Controller(server, hostname="127.0.0.1", port=port or free_port(), ready_timeout=10, **options)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def mailing(tmp_path, clock, server):
    """A page and the server that takes its mail."""
    with running(server) as port:
        settings = plain_settings(tmp_path, smtp_host="127.0.0.1", smtp_port=port, smtp_security="none")
        yield from open_page(settings, clock)


def send(page):
    return asyncio.run(mail.send_due(page.site))


def rows(page):
    with page.database.read() as session:
        return session.scalars(sa.select(Mail).order_by(Mail.id)).all()


def test_a_message_arrives_with_text_html_and_its_headers(mailing, server):
    people.send_link(mailing.site, "ada@example.org", "/")
    assert send(mailing) == 1
    [(sender, recipients, message)] = server.messages
    assert (sender, recipients) == ("papers@localhost", ["ada@example.org"])
    assert message["from"] == "everyformer <papers@localhost>"
    assert message["to"] == "ada@example.org"
    assert message["auto-submitted"] == "auto-generated"
    assert message["date"].datetime == mailing.clock()
    assert re.fullmatch(r"<1\.\d+@localhost>", message["message-id"])
    assert message["list-unsubscribe"] is None
    text, html = (message.get_body((kind,)).get_content() for kind in ("plain", "html"))
    link = re.search(r"http://127.0.0.1:8000/sign-in/\S+", text)[0]
    assert f'href="{link}"' in html
    assert "color-scheme" in html and "<img" not in html and "<script" not in html
    assert re.findall(r"https?://(?!127\.0\.0\.1:8000/)", html) == []


def test_a_sent_mail_keeps_no_context_and_is_not_sent_again(mailing, server):
    people.send_link(mailing.site, "ada@example.org", "/")
    assert [send(mailing), send(mailing)] == [1, 0]
    mailing.clock.forward(days=1)
    assert send(mailing) == 0
    [row] = rows(mailing)
    assert (row.context, row.error, row.sent_at is not None) == ({}, "", True)
    assert len(server.messages) == 1


def test_the_outbox_holds_nothing_that_signs_in(mailing):
    people.send_link(mailing.site, "ada@example.org", "/")
    assert rows(mailing)[0].context == {"link": 1}


def test_a_server_that_fails_is_asked_again_later_and_later(mailing, server):
    server.answers = ["451 Later"] * 3
    people.send_link(mailing.site, "ada@example.org", "/")
    pauses = []
    for _ in range(2):
        assert send(mailing) == 0
        [row] = rows(mailing)
        assert "451" in row.error
        pauses.append((row.not_before - mailing.clock()).total_seconds() / 60)
        assert send(mailing) == 0
        mailing.clock.at = row.not_before
    assert pauses == [1, 4]
    assert send(mailing) == 0
    server.answers = []
    mailing.clock.forward(minutes=16)
    send(mailing)
    assert server.messages == []  # the link has expired: a dead one is not sent
    assert rows(mailing)[0].attempts == mail.TRIES


def test_eight_tries_are_all(mailing, server, clock):
    server.answers = ["451 Later"] * 20
    with mailing.database.write() as session:
        link = people._new_link(session, mailing.site, "ada@example.org", "/", 60 * 24 * 365)
        mail.queue(session, mailing.site, "ada@example.org", "sign-in", {"link": link.id})
    for _ in range(12):
        send(mailing)
        clock.forward(hours=7)
    assert len(server.answers) == 12
    assert rows(mailing)[0].sent_at is None


def test_an_address_refused_for_good_is_not_tried_again(mailing, server, clock):
    server.at_recipient["ada@example.org"] = "550 No such mailbox"
    for address in ("ada@example.org", "bob@example.org"):
        people.send_link(mailing.site, address, "/")
    assert send(mailing) == 1
    assert [recipients for _, recipients, _ in server.messages] == [["bob@example.org"]]
    clock.forward(hours=7)
    server.at_recipient.clear()
    assert send(mailing) == 0


def test_mail_waits_for_a_server_that_is_away(tmp_path, clock, server):
    with running(server) as port:
        pass
    settings = plain_settings(tmp_path, smtp_host="127.0.0.1", smtp_port=port, smtp_security="none")
    for page in open_page(settings, clock):
        people.send_link(page.site, "ada@example.org", "/")
        assert send(page) == 0
        assert rows(page)[0].error
        with running(server, port):
            clock.forward(minutes=2)
            assert send(page) == 1
    assert len(server.messages) == 1


def test_a_mail_that_cannot_be_written_holds_up_no_other(mailing, server):
    with mailing.database.write() as session:
        mail.queue(session, mailing.site, "ada@example.org", "unheard-of", {})
    people.send_link(mailing.site, "bob@example.org", "/")
    assert send(mailing) == 1
    assert "unheard-of" in rows(mailing)[0].error


def test_two_workers_send_each_mail_once(any_page):
    for number in range(8):
        people.send_link(any_page.site, f"a{number}@example.org", "/")
    start = threading.Barrier(4)
    sent = []

    def work():
        start.wait()
        sent.append(send(any_page))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sent) == 8
    assert [row.attempts for row in rows(any_page)] == [1] * 8


def test_a_worker_that_dies_while_sending_leaves_the_mail_to_the_next(site_page):
    people.send_link(site_page.site, "ada@example.org", "/")
    assert len(mail._take(site_page.site)) == 1  # and dies
    assert send(site_page) == 0
    with site_page.database.write() as session:
        session.execute(sa.update(people.SignInLink).values(expires_at=site_page.clock() + 2 * mail.LEASE))
    site_page.clock.at += mail.LEASE
    assert send(site_page) == 1


def test_without_a_server_messages_become_files_for_the_owner(site_page):
    people.send_link(site_page.site, "ada@example.org", "/")
    assert [message["to"] for message in site_page.letters()] == ["ada@example.org"]
    folder = site_page.site.settings.data / "mail"
    [file] = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("address", ["a@b.org\r\nBcc: eve@example.org", "a@b.org\nX: y", "a@b.org, eve@example.org"])
def test_no_address_becomes_another_header(site_page, address):
    with site_page.database.write() as session:
        link = people._new_link(session, site_page.site, "a@b.org", "/", 15)
        mail.queue(session, site_page.site, address, "sign-in", {"link": link.id})
    assert site_page.letters() == []
    assert rows(site_page)[0].error


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
def test_the_server_is_told_who_asks_where_a_user_is_set(tmp_path, clock, server):
    given = []

    def authenticate(smtp, session, envelope, mechanism, data):
        given.append((data.login, data.password))
        return AuthResult(success=True)

    with running(server, authenticator=authenticate, auth_required=True, auth_require_tls=False) as port:
        settings = plain_settings(
            tmp_path,
            smtp_host="127.0.0.1",
            smtp_port=port,
            smtp_security="none",
            smtp_user="page",
            smtp_password="word",
        )
        for page in open_page(settings, clock):
            people.send_link(page.site, "ada@example.org", "/")
            assert send(page) == 1
        assert "word" not in repr(settings).replace("smtp_password", "")
    assert given == [(b"page", b"word")]
