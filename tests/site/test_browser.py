"""A person's ways through the page, in Chromium: with JavaScript and without, by mail and back, light and dark."""

from __future__ import annotations

import datetime
import email.policy
import json
import re
import shutil
import socket
import time

import pytest
from aiosmtpd.controller import Controller
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from everyformer import catalog
from everyformer.site import digests
from everyformer.site.models import Paper, PaperTag
from everyformer.site.web import FORM_COOKIE, Site, utc_now

from .conftest import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
CURATOR = "grace@example.org"


class Letters:
    """A mail server that keeps what it gets."""

    def __init__(self):
        self.kept = []

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        self.kept.append((envelope.rcpt_tos[0], message))
        return "250 kept"

    def to(self, address, kind):
        """The newest letter to ``address`` with ``kind`` in its subject, when it has come."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            for recipient, message in reversed(self.kept):
                if recipient == address and kind in message["subject"].lower():
                    return message
            time.sleep(0.05)
        raise AssertionError(f"no letter about {kind} to {address}; there are {[m['subject'] for _, m in self.kept]}")


def link_in(message, part):
    """The link of a letter whose address holds ``part``."""
    text = message.get_body(("plain",)).get_content()
    return next(found for found in re.findall(r"https?://\S+", text) if part in found)


@pytest.fixture(scope="module")
def letters():
    handler = Letters()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        handler.port = probe.getsockname()[1]
    controller = Controller(handler, hostname="127.0.0.1", port=handler.port)
    controller.start()
    yield handler
    controller.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory, letters):
    """The page and its worker, with the catalogue."""
    with serving(tmp_path_factory.mktemp("browser")) as start:
        yield start(
            SMTP_HOST="127.0.0.1",
            SMTP_PORT=str(letters.port),
            SMTP_SECURITY="none",
            CURATORS=CURATOR,
            CACHE_SECONDS="0",
        )


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, server):
    """Opens a tab for a new visitor; whatever the console says is an error."""
    contexts, said = [], []

    def note(message):
        # That a page answered 404 or 422 the browser says too; it is what some tests ask for.
        expected = "the server responded with a status of", "Response Status Error Code 403"
        if message.type in ("error", "warning") and not any(words in message.text for words in expected):
            said.append(message.text)

    def open_tab(**options):
        context = browser.new_context(base_url=server.url, viewport={"width": 1100, "height": 900}, **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", note)
        tab.on("pageerror", lambda error: said.append(str(error)))
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert said == []


def sign_in(tab, letters, address):
    """By the link that comes by mail."""
    tab.goto("/sign-in")
    tab.get_by_label("Email address").fill(address)
    tab.get_by_role("button", name="Send the link").click()
    letter = letters.to(address, "sign")
    letters.kept.clear()
    tab.goto(link_in(letter, "/sign-in/"))
    tab.get_by_role("main").get_by_role("button", name="Sign in").click()
    expect(tab.locator('nav a[href="/account"]')).to_be_visible()
    return link_in(letter, "/sign-in/")


def test_browsing_filtering_and_reading(visit):
    tab = visit()
    tab.goto("/")
    expect(tab.get_by_role("heading", level=1)).to_have_text("Papers that run")
    expect(tab.locator(".entry")).to_have_count(25)
    tab.mouse.wheel(0, 20_000)
    expect(tab.locator(".entry")).to_have_count(len(catalog.papers()))  # the rest came as it came into view
    tab.get_by_role("link", name="Runs here").click()
    expect(tab.locator(".entry")).to_have_count(min(25, sum(paper.built for paper in catalog.papers())))
    tab.get_by_text("Narrow by tag or verdict").click()
    tab.get_by_role("list", name="Tags").get_by_role("link", name="graph").click()
    expect(tab.locator(".entry")).to_have_count(1)
    tab.locator(".entry h2 a").click()
    expect(tab).to_have_url(re.compile("/papers/mpnn_gt$"))
    expect(tab.get_by_role("table").first).to_contain_text("reproduced")
    picture = tab.locator("img.plot").first
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 300


def test_the_keyboard_walks_through_the_papers(visit):
    tab = visit()
    tab.goto("/")
    tab.keyboard.press("j")
    tab.keyboard.press("j")
    tab.keyboard.press("k")
    first = tab.locator(".entry h2 a").first
    expect(first).to_be_focused()
    address = first.get_attribute("href")
    tab.keyboard.press("Enter")
    expect(tab).to_have_url(re.compile(f"{address}$"))
    tab.keyboard.press("/")
    expect(tab.get_by_label("Search papers")).to_be_focused()


@pytest.mark.parametrize("script", [True, False], ids=["with JavaScript", "without"])
def test_searching(visit, script):
    tab = visit(java_script_enabled=script)
    tab.goto("/")
    tab.get_by_label("Search papers").fill("faster attention for video")
    tab.get_by_role("button", name="Search").click()
    titles = tab.locator(".entry h2").all_inner_texts()[:3]
    assert any(title.startswith("SLA:") for title in titles), titles
    tab.get_by_label("Search papers").fill('verdict:"not reproduced" tag:video')
    tab.get_by_role("button", name="Search").click()
    failed = {
        one.paper for one in catalog.recorded(catalog.shipped_results()).values() if one.verdict == "not reproduced"
    }
    expect(tab.locator(".entry")).to_have_count(sum("video" in catalog.paper(slug).tags for slug in failed))


def test_signing_in_voting_saving_and_commenting(visit, letters):
    tab = visit()
    link = sign_in(tab, letters, "ada@example.org")
    tab.goto("/papers/sla")
    vote = tab.locator("button.vote")
    expect(vote).to_have_attribute("aria-pressed", "false")
    vote.click()
    expect(vote).to_have_attribute("aria-pressed", "true")
    expect(vote).to_contain_text("1 vote")
    tab.get_by_role("button", name="Save").click()
    expect(tab.get_by_role("button", name="Saved")).to_be_visible()
    tab.get_by_label("Your comment").fill(
        "Works **here**. <script>document.title = 'taken'</script> [x](javascript:alert(1)) <img src=x onerror=alert(1)>"
    )
    tab.get_by_role("button", name="Preview").click()
    expect(tab.get_by_role("heading", name="Preview")).to_be_visible()
    tab.get_by_role("button", name="Comment", exact=True).click()
    comment = tab.locator("article.comment").first
    expect(comment.locator("strong").nth(1)).to_have_text("here")
    assert comment.locator("script, img, a[href^=javascript]").count() == 0
    assert "taken" not in tab.title()
    expect(comment).to_contain_text("<script>")  # as the words that they are
    # The reader sees both, and the link that signed her in is good for nobody after her.
    other = visit()
    other.goto("/papers/sla")
    expect(other.locator("a.vote")).to_contain_text("1 vote")
    expect(other.locator("article.comment")).to_have_count(1)
    other.goto(link)
    expect(other.get_by_role("heading", level=1)).to_contain_text("can’t be used")


def test_a_vote_with_an_old_form_says_why_it_did_not_count(visit, letters):
    tab = visit()
    sign_in(tab, letters, "ada@example.org")
    tab.goto("/papers/tah")
    tab.context.clear_cookies(name=FORM_COOKIE)
    tab.locator("button.vote").click()
    expect(tab.get_by_role("main")).to_contain_text("This form has expired")


def test_submitting_by_identifier_from_a_file(visit, letters, tmp_path):
    atom = tmp_path / "export.atom"
    atom.write_text(
        """<?xml version="1.0" encoding="UTF-8"?><feed xmlns="http://www.w3.org/2005/Atom"
        xmlns:arxiv="http://arxiv.org/schemas/atom"><entry><id>http://arxiv.org/abs/2410.00001v2</id>
        <updated>2024-10-02T00:00:00Z</updated><published>2024-10-01T00:00:00Z</published>
        <title>A made-up paper on octopus attention</title><summary>Eight arms attend at once.</summary>
        <author><name>Ada Lovelace</name></author><author><name>Alan Turing</name></author></entry></feed>"""
    )
    tab = visit()
    sign_in(tab, letters, "ada@example.org")
    tab.get_by_role("link", name="Submit").click()
    tab.get_by_label("arXiv").first.fill("2310.06625v3")  # there already
    tab.get_by_role("main").get_by_role("button", name="Submit").click()
    expect(tab).to_have_url(re.compile("/papers/itransformer"))
    tab.get_by_role("link", name="Submit").click()
    tab.get_by_label("arXiv").first.fill("https://arxiv.org/pdf/2410.00001")
    tab.locator("input[type=file]").set_input_files(atom)
    tab.get_by_role("main").get_by_role("button", name="Submit").click()
    expect(tab).to_have_url(re.compile("/papers/2410.00001"))
    expect(tab.get_by_role("heading", level=1)).to_have_text("A made-up paper on octopus attention")
    tab.goto("/search?q=octopus")
    expect(tab.locator(".entry")).to_have_count(1)


def test_a_digest_from_subscribing_to_the_end(visit, letters, server):
    tab = visit()
    tab.goto("/")
    tab.get_by_role("main").get_by_role("link", name="Subscribe").click()
    tab.get_by_label("Email address").fill("alan@example.org")
    tab.get_by_label("With a tag").check()
    tab.get_by_label("Tag or search").fill("graph")
    tab.get_by_role("main").get_by_role("button", name="Subscribe").click()
    letter = letters.to("alan@example.org", "confirm")
    tab.goto(link_in(letter, "/subscribe/confirm/"))
    tab.get_by_role("main").get_by_role("button", name="Subscribe").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("You are subscribed")
    # Two mornings ago the digest of the day before was due: nobody waits until tomorrow for this test.
    due = (utc_now() - datetime.timedelta(days=2)).replace(hour=8)
    before = due - datetime.timedelta(days=1)
    with server.database.write() as session:
        for arxiv, title, tag in (("2410.00002", "Graphs of graphs", "graph"), ("2410.00003", "Other things", "video")):
            paper = Paper(
                arxiv=arxiv, title=title, summary="", ordered_on=before.date(), submitted_at=before,
                submitted_on=before.date(), tags=[tag],
            )  # fmt: skip
            session.add(paper)
            session.flush()
            session.add(PaperTag(tag=tag, paper_id=paper.id))
        for subscription in session.query(digests.Subscription):
            subscription.confirmed_at = before - datetime.timedelta(days=1)
    earlier = Site(server.site.settings, server.database, lambda: due)
    earlier.__dict__["key"] = server.site.key
    letters.kept.clear()
    digests.queue_due(earlier)
    digest = letters.to("alan@example.org", "paper")
    text = digest.get_body(("plain",)).get_content()
    assert "Graphs of graphs" in text and "Other things" not in text
    assert digest["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    tab.goto(link_in(digest, "/unsubscribe/"))
    tab.get_by_role("button", name="End it").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("This digest is ended")


def test_a_curator_runs_a_claim_and_watches_it_finish(visit, letters):
    tab = visit()
    sign_in(tab, letters, CURATOR)
    tab.goto("/papers/uat")
    form = tab.get_by_role("form", name="Run positions")
    form.get_by_label("at").select_option("smoke")
    form.get_by_role("button", name="Run it here").click()
    expect(tab).to_have_url(re.compile(r"/runs/\d+"))
    expect(tab.locator(".state")).to_contain_text(re.compile("queued|running", re.IGNORECASE))
    expect(tab.locator(".state")).to_contain_text(re.compile("finished", re.IGNORECASE), timeout=90_000)
    expect(tab.locator(".log").last).to_contain_text("uat.positions")
    expect(tab.locator(".verdict")).to_have_count(1)
    assert tab.locator("img.plot").evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    tab.goto("/papers/uat")
    expect(tab.locator(".runs")).to_contain_text("finished")


def test_everything_works_without_javascript(visit, letters):
    tab = visit(java_script_enabled=False)
    sign_in(tab, letters, "barbara@example.org")
    tab.goto("/?view=newest")
    tab.locator("a.more").click()
    expect(tab.locator(".entry")).not_to_have_count(25)
    tab.goto("/?view=newest")
    vote = tab.locator(".entry button.vote").nth(3)
    vote.click()
    expect(tab.locator(".entry button.vote").nth(3)).to_have_attribute("aria-pressed", "true")
    tab.goto("/papers/mesa")
    tab.get_by_label("Your comment").fill("Said without a script.")
    tab.get_by_role("button", name="Comment", exact=True).click()
    expect(tab.locator("article.comment")).to_contain_text("Said without a script.")
    tab.get_by_role("link", name="Delete").click()
    tab.get_by_role("main").get_by_role("button", name="Delete").click()
    expect(tab.locator("article.comment")).to_have_count(0)
    tab.locator('nav a[href="/account"]').click()
    tab.get_by_role("button", name="Sign out", exact=True).click()
    expect(tab.get_by_role("navigation", name="Site")).to_contain_text("Sign in")


PUBLIC = ["/", "/?view=trending&tag=graph", "/papers/sla", "/papers/ebt", "/search?q=faster+attention+for+video", "/search",
          "/search?q=after:never", "/advise", "/sign-in", "/subscribe", "/digest", "/runs", "/feeds", "/api",
          "/nothing"]  # fmt: skip
SIGNED_IN = ["/", "/papers/uat", "/submit", "/account"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_a_phone(visit, letters, scheme, server):
    reader = visit(color_scheme=scheme)
    curator = visit(color_scheme=scheme)
    sign_in(curator, letters, CURATOR)
    with server.database.read() as session:
        run = session.query(digests.Subscription.metadata.tables["run"].c.id).first()
    pages = [(reader, path) for path in PUBLIC] + [(curator, path) for path in SIGNED_IN]
    if run:
        pages.append((curator, f"/runs/{run[0]}"))
    wrong = []
    for tab, path in pages:
        tab.goto(path)
        for width in (1100, 360):
            tab.set_viewport_size({"width": width, "height": 800})
            found = Axe().run(tab).response["violations"]
            wrong += [(path, width, rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in found]
            if tab.evaluate("document.documentElement.scrollWidth") > width:
                wrong.append((path, width, "wider than the window"))
    assert not wrong, wrong


def test_pages_are_light_and_nothing_moves(visit):
    tab = visit()
    for path in ("/", "/papers/icl_gd"):
        sizes = []
        tab.on("requestfinished", lambda request, sizes=sizes: sizes.append(request.sizes()["responseBodySize"]))
        tab.add_init_script(
            "window.moved = 0; new PerformanceObserver(list => list.getEntries().forEach(e => window.moved += e.value))"
            ".observe({type: 'layout-shift', buffered: true})"
        )
        tab.goto(path)
        tab.wait_for_load_state("networkidle")
        assert sum(sizes) < 150_000, (path, sum(sizes))
        tab.mouse.wheel(0, 3000)
        tab.wait_for_load_state("networkidle")
        assert tab.evaluate("window.moved") < 0.01, path


def test_the_policy_lets_no_script_in(visit, server):
    tab = visit()
    tab.goto("/")
    assert json.dumps(
        tab.evaluate("[...document.scripts].map(s => s.src.replace(location.origin, '').split('?')[0])")
    ) == ('["/static/htmx.min.js", "/static/page.js"]')
    assert tab.evaluate("document.querySelectorAll('[style], [onclick], [onload], style').length") == 0
