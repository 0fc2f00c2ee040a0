"""What can be typed into the search box, and what it finds, on both databases."""

import concurrent.futures
import datetime
import json
import re
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from everyformer.site import search, semantic
from everyformer.site.catalogue import import_catalogue
from everyformer.site.feed import period_of
from everyformer.site.models import ClaimRow, Paper
from everyformer.site.query import LONGEST, Malformed, Query, parse

from .conftest import Clock, open_page, plain_settings

HERE = Path(__file__).parent
QUERIES = json.loads((HERE / "search_queries.json").read_text(encoding="utf-8"))
LATER = json.loads((HERE / "search_queries_later.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """The catalogue's papers with their semantic index."""
    for page in open_page(plain_settings(tmp_path_factory.mktemp("search")), Clock()):
        import_catalogue(page.site)
        semantic.refit(page.site)
        yield page


def test_a_query_with_everything():
    text = (
        'Faster video "linear  attention" -survey -"time series" tag:Video author:"Ada Lovelace" org:NVIDIA '
        'after:2024 before:2025-03 runs:YES verdict:"Direction only"'
    )
    assert parse(text) == Query(
        text=" ".join(text.split()),
        words=("faster", "video"),
        phrases=(("linear", "attention"),),
        without=(("survey",), ("time", "series")),
        tags=("video",),
        authors=(("ada", "lovelace"),),
        organisations=(("nvidia",),),
        after=datetime.date(2024, 1, 1),
        before=datetime.date(2025, 3, 1),
        runs=True,
        verdict="direction only",
    )


def test_a_title_is_words_whatever_it_holds():
    title = "DiTraj: what comes after? -- (A) NEAR/2 title* OR AND^ + text-to-video, São Paulo's"
    assert parse(title).words == (
        "ditraj", "what", "comes", "after", "a", "near", "2", "title", "or", "and", "text", "to", "video", "são",
        "paulo", "s",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('an "open phrase', "not closed"),
        ('"', "not closed"),
        ('tag:"open', "not closed"),
        ("tag:", "needs something"),
        ('org:""', "needs something"),
        ("author:?!", "needs a name"),
        ("after:2024-13", "2025-03-14"),
        ("before:2023-02-29", "2025-03-14"),
        ("after:yesterday", "2025-03-14"),
        ("after:2025 before:2024", "earlier"),
        ("runs:maybe", "yes or no"),
        ("runs:yes runs:no", "once"),
        ("verdict:good", '"direction only"'),
        ("-tag:video", "minus"),
        ("x" * (LONGEST + 1), f"{LONGEST} characters"),
        ("bell\x07", "control"),
    ],
)
def test_what_is_malformed_is_said(text, message, catalogue):
    with pytest.raises(Malformed, match=message):
        parse(text)
    answer = catalogue.client.get("/search", params={"q": text})
    assert answer.status_code == 422
    assert re.search('class="wrong"', answer.text)
    answer = catalogue.client.get("/api/search", params={"q": text})
    assert answer.status_code == 422
    assert [problem["field"] for problem in answer.json()["detail"]] == ["query.q"]


def found(place, text, **more):
    with place.database.read() as session:
        return [paper.key for paper in search.search(place.site, session, parse(text), **more).papers]


def test_two_questions_for_each_paper_find_it_among_the_first_three(catalogue):
    missed = [(slug, text) for slug, two in QUERIES.items() for text in two if slug not in found(catalogue, text)[:3]]
    assert len(QUERIES) == 34 and sum(map(len, QUERIES.values())) == 68
    assert len(missed) <= 0.1 * 68, missed


def test_later_questions_find_their_papers_too(catalogue):
    missed = [(slug, text) for slug, text in LATER.items() if slug not in found(catalogue, text)[:3]]
    assert len(LATER) == 34 and len(missed) <= 3, missed


def test_faster_attention_for_video_is_sla(catalogue):
    assert "sla" in found(catalogue, "faster attention for video")[:3]


def test_every_paper_is_found_by_its_title_and_its_name(catalogue):
    with catalogue.database.read() as session:
        papers = session.query(Paper).all()
    for paper in papers:
        assert found(catalogue, paper.title)[0] == paper.slug
        assert found(catalogue, paper.slug.upper())[0] == paper.slug
        assert found(catalogue, f"https://arxiv.org/abs/{paper.arxiv}v2")[0] == paper.slug


def test_a_search_without_an_index_still_finds_words(site_page):
    import_catalogue(site_page.site)
    assert found(site_page, "wavelet transform")[0] == "wavemix"


@pytest.fixture
def library(any_page):
    """Five papers with an index."""
    many = [
        ("2401.00001", "Cats in linear attention", {"authors": "Ada Lovelace\nIda Rhodes", "organisation": "Naval Office"}),
        ("2402.00002", "Attention that is linear in dogs", {"authors": "Grace Hopper", "tags": ["video"]}),
        ("2403.00003", "Dogs and cats", {"abstract": "No attention here: a survey.", "runs_here": True}),
        ("2404.00004", "Birds", {"summary": "Grace is what Lovelace admired.", "tags": ["video", "survey"]}),
        ("2405.00005", "Fish in naval battles", {"authors": "Ida Hopper", "verdicts": {"speed": "reproduced"}}),
    ]  # fmt: skip
    for arxiv, title, facts in many:
        year, month = 2000 + int(arxiv[:2]), int(arxiv[2:4])
        paper = any_page.add_paper(arxiv, title=title, ordered_on=datetime.date(year, month, 1), **facts)
        for name, verdict in facts.get("verdicts", {}).items():
            with any_page.database.write() as session:
                session.add(ClaimRow(paper_id=paper.id, name=name, position=0, card={}, verdict=verdict, result={}))
    semantic.refit(any_page.site)
    return any_page


@pytest.mark.parametrize(
    ("text", "papers"),
    [
        ('"linear attention"', "1"),
        ("linear attention -dogs", "1"),
        ('cats -"linear attention"', "3"),
        ("-attention", "45"),
        ("author:lovelace", "1"),
        ("author:LOVELACE author:rhodes", "1"),
        ('author:"ida hopper"', "5"),
        ("author:hopper", "25"),
        ("org:naval", "1"),
        ("tag:video", "24"),
        ("tag:video tag:survey", "4"),
        ("tag:video dogs", "2"),
        ("tag:none dogs", ""),
        ("after:2024-03", "345"),
        ("before:2024-03", "12"),
        ("after:2024-02-01 before:2024-02-02", "2"),
        ("runs:yes", "3"),
        ("runs:no -attention", "45"),
        ("verdict:reproduced", "5"),
        ('verdict:"not reproduced"', ""),
        ("the of and", ""),
        ('"of the"', ""),
        ("", ""),
        ("-", ""),
        ("zyzzyva", ""),
    ],
)
def test_filters_words_and_phrases(library, text, papers):
    assert sorted(key[-1] for key in found(library, text)) == list(papers)


def test_words_are_stemmed_and_stop_words_are_left_out(library):
    assert found(library, "a cat")[0] in ("2401.00001", "2403.00003")
    assert set(found(library, "the dog in battle")) >= {"2402.00002", "2403.00003", "2405.00005"}


@pytest.mark.parametrize(
    "text", ['") OR title:(x', "NEAR(a b)", "a* ^b {c}", "title : x", "'; DROP TABLE paper; --", "a & b | !c <-> d"]
)
def test_no_text_is_a_command(library, text):
    try:
        query = parse(text)
    except Malformed:
        return
    with library.database.read() as session:
        search.search(library.site, session, query)
    assert found(library, "birds") == ["2404.00004"]


def test_pages_follow_each_other_and_a_period_narrows(site_page):
    for number in range(60):
        site_page.add_paper(f"2401.{number:05}", title=f"Attention {number}", ordered_on=datetime.date(2024, 1, 1))
    site_page.clock.forward(days=1)
    last = site_page.add_paper("2402.00001", title="Attention later")
    pages = [found(site_page, "attention", page=page) for page in range(4)]
    assert [len(page) for page in pages] == [25, 25, 11, 0]
    assert len({key for page in pages for key in page}) == 61
    assert found(site_page, "attention", within=period_of("day", last.submitted_on)) == ["2402.00001"]


def test_the_page_of_a_search(catalogue):
    text = catalogue.client.get("/search", params={"q": "faster attention for video"}).text
    assert '<meta name="robots" content="noindex">' in text
    assert 'href="/feed.atom?q=faster+attention+for+video"' in text
    assert 'href="/subscribe?scope=query&amp;value=faster+attention+for+video"' in text
    assert 'value="faster attention for video"' in text
    assert 'href="/papers/sla"' in text
    nothing = catalogue.client.get("/search", params={"q": "zyzzyva"})
    assert nothing.status_code == 200 and "No paper fits" in nothing.text
    stop = catalogue.client.get("/search", params={"q": "the of"})
    assert stop.status_code == 200 and "nearly every paper" in stop.text and "No paper fits" not in stop.text
    assert "What a search can say" in catalogue.client.get("/search").text


def test_more_results_come_as_entries_alone_for_htmx(catalogue):
    first = catalogue.client.get("/search", params={"q": "after:2000"}).text
    more = re.search(r'<a class="more" href="([^"]+)"', first)[1].replace("&amp;", "&")
    alone = catalogue.client.get(more, headers={"hx-request": "true"}).text
    assert "<html" not in alone and alone.count('<article class="entry"') == 9
    assert "<html" in catalogue.client.get(more).text


def test_what_is_typed_is_escaped(catalogue):
    text = catalogue.client.get("/search", params={"q": "<script>alert(1)</script>"}).text
    assert "<script>alert" not in text


def test_similar_papers(catalogue):
    with catalogue.database.read() as session:
        paper = session.query(Paper).filter_by(slug="icl_gd").one()
    near = [other.slug for other in search.similar(catalogue.site, paper)]
    assert "mesa" in near and "icl_gd" not in near and len(near) <= 5


def test_many_readers_who_ask_first_at_once_need_one_connection_each(catalogue):
    """The first question loads the index; forty that wait for it hold every connection there is."""
    catalogue.site.semantic._loaded, catalogue.site.semantic._looked = None, -1.0
    together = threading.Barrier(40)

    def ask(number):
        with catalogue.database.read() as session:
            session.execute(sa.select(1))
            together.wait(20)
            return search.search(catalogue.site, session, parse(f"wavelet transform {number}")).papers[0].slug

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        assert set(pool.map(ask, range(40), timeout=20)) == {"wavemix"}
