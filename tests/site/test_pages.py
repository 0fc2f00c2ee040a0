"""What a reader sees: the front page and the papers' pages, as text."""

import datetime
import json
import re
from pathlib import Path

import pytest

from everyformer import catalog
from everyformer.site import display, notes
from everyformer.site.catalogue import import_catalogue

from .conftest import Clock, open_page, plain_settings

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    """The catalogue's papers; what tests add to it is of another day."""
    for page in open_page(plain_settings(tmp_path_factory.mktemp("pages")), Clock()):
        import_catalogue(page.site)
        yield page


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.text))


def test_the_front_page_shows_the_day_with_facts_and_figures(full_page):
    said = text_of(full_page.client.get("/"))
    assert "Wednesday, Nov 25" in said
    assert "7 authors · Oct 10, 2023".replace(" · ", " ") in said
    assert "2 comments" in said and "NVIDIA" in said
    assert "forward speed-up over full attention (x) paper 13.7 vs 1 here 9." in said
    # 25 on the first page, the other nine behind the link.
    first = full_page.client.get("/").text
    assert first.count('<article class="entry"') == 25
    more = re.search(r'<a class="more" href="([^"]+)"', first)[1].replace("&amp;", "&")
    second = full_page.client.get(more).text
    assert second.count('<article class="entry"') == len(catalog.papers()) - 25
    assert 'class="more"' not in second
    alone = full_page.client.get(more, headers={"HX-Request": "true"}).text
    assert "<html" not in alone and alone.count('<article class="entry"') == 9


def test_the_feed_of_a_list_is_of_the_days_to_come(full_page):
    assert 'href="/feed.atom"' in full_page.client.get("/?date=2026-11-25").text
    assert 'href="/feed.rss?view=week&amp;tag=graph"' in full_page.client.get("/?week=2026-W48&tag=graph").text


def test_filters_and_views_keep_each_other(full_page):
    html = full_page.client.get("/?view=newest&tag=graph").text
    assert html.count('<article class="entry"') == 1
    assert "verdict=reproduced" in html and "tag=graph" in html
    recorded = [json.loads(file.read_text(encoding="utf-8")) for file in RESULTS.glob("*.json")]
    failed = {result["paper"] for result in recorded if result["verdict"] == "not reproduced"}
    assert full_page.client.get("/?verdict=not+reproduced").text.count('<article class="entry"') == len(failed) > 0
    pages = [full_page.client.get(f"/?runs=yes&p={page}").text for page in (0, 1)]
    assert sum(page.count('<article class="entry"') for page in pages) == sum(paper.built for paper in catalog.papers())


@pytest.mark.parametrize(
    "query", ["date=2026-13-01", "week=2025-W54", "month=2025-13", "view=year", "verdict=true", "p=-1"]
)
def test_what_cannot_be_read_is_said(full_page, query):
    answer = full_page.client.get(f"/?{query}")
    assert answer.status_code == 422
    assert query.split("=")[0] in answer.text


@pytest.mark.parametrize("slug", [paper.slug for paper in catalog.papers()])
def test_every_paper_has_a_page_with_its_claims(full_page, slug):
    paper = catalog.paper(slug)
    html = full_page.client.get(f"/papers/{slug}").text
    said = text_of(full_page.client.get(f"/papers/{slug}"))
    results = catalog.recorded(catalog.shipped_results())
    assert f"arxiv.org/abs/{paper.arxiv}" in html
    for claim in paper.claims:
        assert display.metric(vars(claim)) in html.replace("&#34;", '"').replace("&amp;", "&").replace(
            "&gt;", ">"
        ).replace("&#39;", "'")
        recorded = results.get(f"{slug}.{claim.name}.cpu")
        if recorded:
            assert f"/papers/{slug}/plots/{recorded.stem}.svg" in html
            assert recorded.verdict in said
            assert recorded.commit in said
    if paper.built:
        assert "everyformer.papers" in html


def test_a_paper_is_found_by_its_identifier_and_keeps_one_address(full_page):
    answer = full_page.client.get("/papers/2310.06625")
    assert (answer.status_code, answer.headers["location"]) == (308, "/papers/itransformer")
    full_page.add_paper("cs/0112017", title="An old one", submitted_on=datetime.date(2020, 1, 1))
    assert "An old one" in full_page.client.get("/papers/cs/0112017").text
    assert full_page.client.get("/papers/nothing").status_code == 404


def test_plots_are_pictures_and_nothing_else_is_served(full_page):
    answer = full_page.client.get("/papers/sla/plots/sla.speed.cpu.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "prefers-color-scheme: dark" in answer.text
    for stem in ("sla.speed.smoke", "../sla.speed.cpu", "..%2f..%2fpyproject", "sla.speed.cpu.json"):
        assert full_page.client.get(f"/papers/sla/plots/{stem}.svg").status_code == 404


def test_a_plot_has_its_text_alternative(full_page):
    html = full_page.client.get("/papers/sla").text
    alternative = re.search(r'alt="(forward speed-up[^"]+)"', html)[1]
    assert "baseline 1 [1, 1]" in alternative and "reproduced" in alternative
    assert "Time, seconds over tokens: SLA from 0.01433 at 2048 to 0.3667 at 1.638e+04" in alternative.replace(
        "16384", "1.638e+04"
    )


def test_dates_are_short_and_have_a_year_only_when_it_is_another():
    today = datetime.date(2026, 11, 25)
    assert display.day(datetime.date(2026, 2, 14), today) == "Feb 14"
    assert display.day(datetime.date(2024, 10, 23), today) == "Oct 23, 2024"
    assert display.day(None, today) == ""


def test_notes_of_a_readme_are_clean_html():
    markdown = "# T\n\n```python\nimport x\n```\n\n## A\n\n<script>bad</script> [in](../x) [out](https://a.b) `code`\n"
    assert notes.first_python(markdown) == "import x\n"
    html = notes.sections(markdown)
    assert "<h3>A</h3>" in html and "<script" not in html
    assert 'href="https://a.b"' in html and "../x" not in html
    assert notes.sections("# only\n") == ""
