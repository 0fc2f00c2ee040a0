"""Feeds for feed readers: valid, stable, the same papers as the list, and cheap to ask again."""

import datetime
import xml.etree.ElementTree as ElementTree
from email.utils import parsedate_to_datetime

import pytest

from everyformer import catalog
from everyformer.site import semantic
from everyformer.site.catalogue import import_catalogue

from .conftest import Clock, open_page, plain_settings

ATOM = {"a": "http://www.w3.org/2005/Atom"}
ORIGIN = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The catalogue's papers, with their semantic index."""
    for page in open_page(plain_settings(tmp_path_factory.mktemp("feeds")), Clock()):
        import_catalogue(page.site)
        semantic.refit(page.site)
        yield page


def get(page, path, media_type):
    answer = page.client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
    return answer


def atom(page, query=""):
    return ElementTree.fromstring(get(page, f"/feed.atom{query}", "application/atom+xml").content)


def titles(feed):
    return [entry.findtext("a:title", namespaces=ATOM) for entry in feed.iterfind("a:entry", ATOM)]


def test_atom_has_what_its_standard_asks_for(full):
    feed = atom(full)
    assert feed.findtext("a:id", namespaces=ATOM) == f"{ORIGIN}/feed.atom"
    assert feed.findtext("a:author/a:name", namespaces=ATOM) == "everyformer"
    links = {link.get("rel"): link.get("href") for link in feed.iterfind("a:link", ATOM)}
    assert links == {"self": f"{ORIGIN}/feed.atom", "alternate": f"{ORIGIN}/"}
    assert datetime.datetime.fromisoformat(feed.findtext("a:updated", namespaces=ATOM)).tzinfo
    entries = feed.findall("a:entry", ATOM)
    assert len(entries) == 34
    ids = {entry.findtext("a:id", namespaces=ATOM) for entry in entries}
    assert ids == {f"{ORIGIN}/papers/{paper.arxiv}" for paper in catalog.papers()}
    for entry in entries:
        for name in ("title", "updated", "published", "content"):
            assert entry.findtext(f"a:{name}", namespaces=ATOM)
        link = entry.find("a:link", ATOM).get("href")
        assert full.client.get(link.removeprefix(ORIGIN)).status_code == 200


def test_an_entry_says_what_was_measured(full):
    feed = atom(full)
    sla = next(
        entry for entry in feed.iterfind("a:entry", ATOM) if entry.findtext("a:title", "", ATOM).startswith("SLA")
    )
    said = sla.findtext("a:content", namespaces=ATOM)
    result = catalog.recorded(catalog.shipped_results())["sla.speed.cpu"]
    assert catalog.paper("sla").summary in said and "paper 13.7 vs 1" in said and result.verdict in said


def test_rss(full):
    channel = ElementTree.fromstring(get(full, "/feed.rss", "application/rss+xml").content).find("channel")
    assert channel.findtext("link") == f"{ORIGIN}/" and channel.findtext("description")
    items = channel.findall("item")
    assert len(items) == 34
    for item in items:
        assert item.findtext("title") and item.findtext("description") and item.findtext("link").startswith(ORIGIN)
        assert item.find("guid").get("isPermaLink") == "true"
        parsedate_to_datetime(item.findtext("pubDate"))


def test_json_feed(full):
    feed = get(full, "/feed.json", "application/feed+json").json()
    assert feed["version"] == "https://jsonfeed.org/version/1.1" and feed["feed_url"] == f"{ORIGIN}/feed.json"
    assert len(feed["items"]) == 34
    for item in feed["items"]:
        assert item["id"] and item["url"] and item["content_text"]
        assert datetime.datetime.fromisoformat(item["date_published"]).tzinfo


@pytest.mark.parametrize("view", ["week", "month", "newest", "trending"])
def test_each_view_has_a_feed(full, view):
    listed = full.client.get(f"/api/papers?view={view}&limit=50").json()["papers"]
    assert titles(atom(full, f"?view={view}")) == [paper["title"] for paper in listed]


def test_tags_verdicts_times_and_searches_have_feeds(full):
    video = {paper.title for paper in catalog.papers() if "video" in paper.tags}
    assert set(titles(atom(full, "?tag=video"))) == video
    assert set(titles(atom(full, "?tag=video&view=newest"))) == video
    assert len(titles(atom(full, "?date=2026-11-25"))) == 34 and not titles(atom(full, "?date=2026-11-24"))
    found = titles(atom(full, "?q=wavelet+transform"))
    assert found[0].startswith("WaveMix")
    reproduced = [
        paper["title"] for paper in full.client.get("/api/papers?verdict=reproduced&limit=50").json()["papers"]
    ]
    assert titles(atom(full, "?view=newest&verdict=reproduced")) == reproduced


def test_a_reader_of_the_day_misses_no_paper(site_page):
    """A list of one day that is read before it is complete loses the rest of the day; this feed does not."""
    site_page.add_paper("2401.00001", title="Morning")
    assert titles(atom(site_page)) == ["Morning"]
    site_page.add_paper("2401.00002", title="Evening")
    site_page.clock.forward(days=1)
    site_page.add_paper("2401.00003", title="Next day")
    assert titles(atom(site_page)) == ["Next day", "Evening", "Morning"]


def test_a_new_paper_is_in_the_feed_of_a_search_before_better_ones(site_page):
    for number in range(60):
        site_page.add_paper(f"2401.{number:05}", title="Attention attention attention")
    site_page.clock.forward(days=40)
    site_page.add_paper("2402.00001", title="A long title that says attention once among many other words")
    feed = titles(atom(site_page, "?q=attention"))
    assert len(feed) == 50 and feed[0].startswith("A long title")


@pytest.mark.parametrize("kind", ["atom", "rss", "json"])
def test_who_has_it_is_told_so(full, kind):
    first = full.client.get(f"/feed.{kind}")
    assert full.client.get(f"/feed.{kind}").headers["etag"] == first.headers["etag"]
    for headers in (
        {"if-none-match": first.headers["etag"]},
        {"if-none-match": f'"other", W/{first.headers["etag"]}'},
        {"if-modified-since": first.headers["last-modified"]},
    ):
        again = full.client.get(f"/feed.{kind}", headers=headers)
        assert again.status_code == 304 and again.content == b""
        assert again.headers["etag"] == first.headers["etag"]
    for headers in (
        {"if-none-match": '"other"', "if-modified-since": first.headers["last-modified"]},
        {"if-modified-since": "Mon, 01 Jan 2024 00:00:00 GMT"},
        {"if-modified-since": "nonsense"},
    ):
        assert full.client.get(f"/feed.{kind}", headers=headers).status_code == 200


def test_a_new_paper_changes_the_validators(site_page):
    site_page.add_paper()
    first = site_page.client.get("/feed.atom")
    site_page.clock.forward(minutes=1)
    site_page.add_paper("2401.00001")
    for name, header in (("if-none-match", "etag"), ("if-modified-since", "last-modified")):
        assert site_page.client.get("/feed.atom", headers={name: first.headers[header]}).status_code == 200


@pytest.mark.parametrize("query", ["?date=2026-13-01", "?week=2025-W54", "?verdict=good", "?q=%22", "?view=best"])
def test_what_cannot_be_read_is_422(full, query):
    answer = full.client.get(f"/feed.atom{query}")
    assert answer.status_code == 422 and query[1:].partition("=")[0] in answer.text


def test_text_that_xml_cannot_hold(site_page):
    site_page.add_paper(
        title="Bell \x07 and <b>bold</b> & \ufffe", authors="A\x0bda", abstract="Line\x00", tags=["a\x1fb"]
    )
    feed = atom(site_page)
    assert titles(feed) == ["Bell  and <b>bold</b> & "]
    ElementTree.fromstring(site_page.client.get("/feed.rss").content)


def test_an_empty_feed_is_one(site_page):
    assert titles(atom(site_page)) == []
    assert site_page.client.get("/feed.json").json()["items"] == []


def test_the_page_that_lists_them(full):
    text = full.client.get("/feeds").text
    for path in ("/feed.atom", "/feed.rss?view=trending", "/feed.json?view=week", "/feed.atom?tag=video"):
        assert f'href="{path}"' in text
    assert full.client.get("/feed.atom?q=faster%20attention%20for%20video").status_code == 200
