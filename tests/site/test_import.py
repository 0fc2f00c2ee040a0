"""Papers from elsewhere: each form is read, one that is broken changes nothing, what is known is not lost."""

import datetime
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa

from everyformer.site import importers
from everyformer.site.arxiv import arxiv_id
from everyformer.site.catalogue import import_catalogue
from everyformer.site.importers import Found, ImportRefused, import_files, read, read_atom
from everyformer.site.models import Paper, PaperTag

FILES = Path(__file__).parent / "files"
ATOM = (FILES / "arxiv.atom").read_bytes()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2502.10389", "2502.10389"),
        (" arXiv:2502.10389v3 ", "2502.10389"),
        ("https://arxiv.org/abs/2502.10389v12", "2502.10389"),
        ("http://www.arxiv.org/pdf/2502.10389v2.pdf", "2502.10389"),
        ("arxiv.org/abs/0704.0001?context=hep", "0704.0001"),
        ("cs/0112017v1", "cs/0112017"),
        ("https://export.arxiv.org/abs/math.GT/0309136", "math/0309136"),
    ],
)
def test_identifiers_in_every_form(written, meant):
    assert arxiv_id(written) == meant


@pytest.mark.parametrize(
    "written", ["", "2502", "2513.10389", "2502.10389w", "https://example.org/abs/2502.10389", "２５０２.10389"]
)
def test_other_identifiers_are_refused_with_what_is_accepted(written):
    with pytest.raises(ValueError, match=r"2502\.10389v2 or cs/0112017"):
        arxiv_id(written)


def paper_of(page, arxiv):
    with page.database.read() as session:
        return session.scalars(sa.select(Paper).where(Paper.arxiv == arxiv)).one()


def test_an_atom_file(any_page):
    done = import_files(any_page.site, [FILES / "arxiv.atom"])
    assert (done.added, done.updated, done.unchanged) == (2, 0, 0)
    paper = paper_of(any_page, "2502.10389")
    assert paper.title == "A Paper about Sampling & Regions"
    assert paper.abstract == "It spends its steps where they are needed."
    assert paper.names == ["Ada Lovelace", "Émilie du Châtelet"] and paper.author_count == 2
    assert paper.organisation == "Analytical Society"
    assert paper.published_on == paper.ordered_on == datetime.date(2025, 2, 14)
    assert paper.submitted_at == any_page.clock()
    assert paper_of(any_page, "cs/0112017").published_on.year == 2001
    again = import_files(any_page.site, [FILES / "arxiv.atom"])
    assert (again.added, again.updated, again.unchanged) == (0, 0, 2)


def test_the_json_of_daily_papers_adds_what_is_new(any_page):
    import_files(any_page.site, [FILES / "arxiv.atom"])
    done = import_files(any_page.site, [FILES / "daily_papers.json"])
    assert (done.added, done.updated) == (0, 1)
    paper = paper_of(any_page, "2502.10389")
    assert paper.comments_elsewhere == 3 and paper.project_url == "https://example.org/regions"
    assert paper.code_url is None, "an address that is no link"
    assert paper.votes == 0, "nobody voted here"


def test_a_paper_of_the_daily_list_comes_on_its_day(site_page):
    import_files(site_page.site, [FILES / "daily_papers.json"])
    assert paper_of(site_page, "2502.10389").submitted_on == datetime.date(2025, 2, 16)


def test_our_own_export_comes_back(site_page, tmp_path):
    import_catalogue(site_page.site)
    exported = site_page.client.get("/api/papers?limit=100").json()
    (tmp_path / "export.json").write_text(json.dumps(exported), encoding="utf-8")
    assert vars(import_files(site_page.site, [tmp_path / "export.json"])) == {
        "added": 0, "updated": 0, "unchanged": len(exported["papers"])
    }  # fmt: skip
    sla = next(paper for paper in exported["papers"] if paper["slug"] == "sla")
    with site_page.database.write() as session:
        session.execute(sa.delete(Paper).where(Paper.slug == "sla"))
    import_files(site_page.site, [tmp_path / "export.json"])
    back = paper_of(site_page, sla["id"])
    assert (back.title, back.summary, back.tags) == (sla["title"], sla["summary"], sla["tags"])
    with site_page.database.read() as session:
        tags = session.scalars(sa.select(PaperTag.tag).where(PaperTag.paper_id == back.id)).all()
    assert sorted(tags) == sorted(sla["tags"])


def test_the_catalogue_has_the_last_word_on_its_papers(site_page, tmp_path):
    import_catalogue(site_page.site)
    before = paper_of(site_page, "2502.10389")
    import_files(site_page.site, [FILES / "arxiv.atom", FILES / "daily_papers.json"])
    after = paper_of(site_page, "2502.10389")
    assert (after.title, after.summary, after.author_count) == (before.title, before.summary, before.author_count)
    assert after.abstract and after.names, "what the card does not say is learned"


def test_an_empty_fact_replaces_none(site_page):
    full = Found("2502.10389", title="Full", abstract="Something", authors=["Ada"], project_url="https://example.org")
    with site_page.database.write() as session:
        importers.store(site_page.site, session, [full, Found("2502.10389", title="Fuller")])
    paper = paper_of(site_page, "2502.10389")
    assert (paper.title, paper.abstract, paper.authors) == ("Fuller", "Something", "Ada")
    with site_page.database.write() as session:
        importers.store(site_page.site, session, [Found("2502.10389", title="Fullest")])
    paper = paper_of(site_page, "2502.10389")
    assert (paper.title, paper.abstract, paper.project_url) == ("Fullest", "Something", "https://example.org")


@pytest.mark.parametrize("name", ["arxiv.atom", "daily_papers.json"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_is_cut_off_applies_nothing(site_page, tmp_path, name, share):
    data = (FILES / name).read_bytes()
    half = tmp_path / "half"
    half.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImportRefused, match="half: the file is cut off"):
        import_files(site_page.site, [FILES / "arxiv.atom", half])
    with site_page.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Paper)) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\xff\xfe\x00", "neither"),
        (b"<rss/>", "not an Atom feed"),
        (b"{}", "expected a list"),
        (b'[{"id": "2502.10389"}]', "entry 1: title is missing"),
        (b'["2502.10389", 5]', "entry 2: must be an object"),
        (b'[{"id": "2502.10389", "title": 5}]', "entry 1: title must be a str"),
        (b'[{"id": "x", "title": "y"}]', "entry 1: must be an arXiv identifier"),
        (b'[{"id": "2502.10389", "title": "y", "publishedAt": "soon"}]', "publishedAt must be a date"),
        (b"2502.10389\nnonsense\n", "line 2: must be an arXiv identifier"),
        (b"[" * 100_000, "cut off or no JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(data, message):
    with pytest.raises(ImportRefused, match=message):
        read(data)


def test_entities_are_refused():
    bomb = (
        b'<!DOCTYPE feed [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><feed xmlns="http://www.w3.org/2005/Atom">&b;</feed>'
    )
    with pytest.raises(ImportRefused, match="document type"):
        read_atom(bomb)
    outside = b'<!DOCTYPE feed SYSTEM "file:///etc/passwd"><feed xmlns="http://www.w3.org/2005/Atom"/>'
    with pytest.raises(ImportRefused, match="document type"):
        read_atom(outside)


def test_a_large_file_is_not_read(site_page, tmp_path, monkeypatch):
    monkeypatch.setattr(importers, "LARGEST_FILE", 100)
    with pytest.raises(ImportRefused, match="larger than"):
        import_files(site_page.site, [FILES / "arxiv.atom"])


def test_identifiers_alone_need_the_network(site_page, tmp_path):
    (tmp_path / "ids").write_text("2502.10389\n", encoding="utf-8")
    with pytest.raises(ImportRefused, match="EVERYFORMER_SITE_NETWORK"):
        import_files(site_page.site, [tmp_path / "ids"])


@pytest.fixture
def arxiv(site_page, monkeypatch):
    """A stand-in for arXiv on the loopback interface; ``answer`` is what it says."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        status, body, headers_more = 200, ATOM, ()

        def do_GET(self):
            asked.append(self.path)
            self.send_response(type(self).status)
            for name, value in type(self).headers_more:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(type(self).body)

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(importers, "ARXIV", f"http://127.0.0.1:{server.server_port}/api/query")
    monkeypatch.setattr(site_page.site.settings, "network", True)
    Answer.asked = asked
    yield Answer
    server.shutdown()
    server.server_close()


def test_arxiv_is_asked_for_identifiers(site_page, arxiv, tmp_path):
    (tmp_path / "ids").write_text("https://arxiv.org/abs/2502.10389v1\n\ncs/0112017\n", encoding="utf-8")
    assert import_files(site_page.site, [tmp_path / "ids"]).added == 2
    assert arxiv.asked == ["/api/query?id_list=2502.10389%2Ccs%2F0112017&max_results=2"]
    with pytest.raises(ImportRefused, match=r"arXiv knows no paper 2101\.00001"):
        importers.fetch(site_page.site, ["2101.00001"])


def test_arxiv_can_fail(site_page, arxiv, monkeypatch):
    arxiv.status, arxiv.headers_more = 302, [("Location", "http://127.0.0.1:1/elsewhere")]
    with pytest.raises(ImportRefused, match="did not answer"):
        importers.fetch(site_page.site, ["2502.10389"])
    arxiv.status, arxiv.headers_more = 503, ()
    with pytest.raises(ImportRefused, match="did not answer"):
        importers.fetch(site_page.site, ["2502.10389"])
    arxiv.status = 200
    monkeypatch.setattr(importers, "LARGEST_ANSWER", 100)
    with pytest.raises(ImportRefused, match="larger than expected"):
        importers.fetch(site_page.site, ["2502.10389"])


def test_only_arxiv_is_asked():
    assert importers.ARXIV.startswith("https://export.arxiv.org/")


def test_the_command_line_imports_all_files_or_none(tmp_path, capsys, monkeypatch):
    from everyformer import cli

    good = FILES / "arxiv.atom"
    half = tmp_path / "half.atom"
    half.write_bytes(good.read_bytes()[:-200])
    monkeypatch.setattr("sys.argv", ["everyformer", "import", str(good), str(half), "--data", str(tmp_path / "page")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "half.atom" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["everyformer", "import", str(good), "--data", str(tmp_path / "page")])
    for expected in ("0 told something new, 0 known", "0 new, 0 told something new"):
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out
