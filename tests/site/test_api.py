"""What programs read: our own addresses, those of existing clients, and what the description promises."""

import itertools
import threading
import time

import httpx
import pytest
import schemathesis
import uvicorn
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from everyformer import catalog
from everyformer.site import semantic
from everyformer.site.catalogue import import_catalogue
from everyformer.site.models import Run

from .conftest import Clock, open_page, plain_settings


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The catalogue's papers, with one run and one paper that somebody submitted."""
    for page in open_page(plain_settings(tmp_path_factory.mktemp("api")), Clock()):
        import_catalogue(page.site)
        page.clock.forward(days=1)
        person = page.sign_in()
        page.client.cookies.clear()
        paper = page.add_paper(
            "cs/0112017", title="An old paper", abstract="About nothing", authors="Ada Lovelace", votes=4, points=4,
            submitted_by=person, tags=["theory"],
        )  # fmt: skip
        with page.database.write() as session:
            session.add(Run(paper_id=paper.id, claim="speed", scale="smoke", seeds=1, created_at=page.clock()))
        semantic.refit(page.site)
        yield page


@pytest.fixture(scope="module")
def address(full):
    """The same page behind a real server, for a client that only knows an address."""
    server = uvicorn.Server(uvicorn.Config(full.client.app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def get(full, path, status=200):
    answer = full.client.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_papers_in_pages(full):
    first = get(full, "/api/papers?limit=30")
    second = get(full, "/api/papers?limit=30&p=1")
    assert first["more"] and not second["more"] and second["p"] == 1
    ids = [paper["id"] for paper in first["papers"] + second["papers"]]
    assert len(set(ids)) == 35 and set(ids) > {paper.arxiv for paper in catalog.papers()}


def test_views_times_and_filters(full):
    assert get(full, "/api/papers?view=trending&limit=1")["papers"][0]["id"] == "cs/0112017"
    assert [paper["id"] for paper in get(full, "/api/papers?view=day")["papers"]] == ["cs/0112017"]
    assert len(get(full, "/api/papers?date=2026-11-25&limit=100")["papers"]) == 34
    assert len(get(full, "/api/papers?week=2026-W48&limit=100")["papers"]) == 35
    assert len(get(full, "/api/papers?month=2026-11&limit=100")["papers"]) == 35
    assert get(full, "/api/papers?month=2026-10")["papers"] == []
    video = {paper.arxiv for paper in catalog.papers() if "video" in paper.tags}
    assert {paper["id"] for paper in get(full, "/api/papers?tag=video")["papers"]} == video
    assert {paper["runsHere"] for paper in get(full, "/api/papers?runs=true")["papers"]} == {True}
    for paper in get(full, "/api/papers?verdict=reproduced")["papers"]:
        assert "reproduced" in paper["verdicts"].values()


def test_one_paper_with_what_was_measured(full):
    paper = get(full, "/api/papers/sla")
    assert paper == get(full, "/api/papers/2509.24006") == get(full, "/api/papers/2509.24006v2")
    assert paper["url"] == "http://127.0.0.1:8000/papers/sla" and paper["publishedAt"] is None
    card = catalog.paper("sla")
    assert [claim["name"] for claim in paper["claims"]] == [claim.name for claim in card.claims]
    result = catalog.recorded(catalog.shipped_results())["sla.speed.cpu"]
    speed = next(claim for claim in paper["claims"] if claim["name"] == "speed")
    assert speed["paperValue"] == card.claim("speed").paper_value and speed["verdict"] == result.verdict
    assert speed["result"]["method"]["mean"] == result.method.mean
    assert speed["result"]["effect"]["low"] == result.effect.low
    raw = get(full, speed["result"]["raw"].removeprefix("http://127.0.0.1:8000"))
    assert raw == result.to_json() or catalog.Result.from_json(raw).to_json() == result.to_json()
    assert get(full, "/api/papers/cs/0112017")["submittedOnDailyBy"]["user"] == "ada"
    assert get(full, "/api/papers/nothing", 404) == {"detail": "There is no paper 'nothing' here."}
    get(full, "/api/results/sla.speed.paper.json", 404)
    get(full, "/api/results/nothing.json", 404)


def test_every_recorded_result_is_a_claim(full):
    pages = (get(full, f"/api/claims?limit=100&p={page}")["claims"] for page in itertools.count())
    claims = [claim for page in itertools.takewhile(len, pages) for claim in page]
    recorded = catalog.recorded(catalog.shipped_results()).values()
    assert {(claim["paper"], claim["name"]) for claim in claims} == {(one.paper, one.claim) for one in recorded}
    some = get(full, "/api/claims?verdict=reproduced&limit=1")
    assert some["claims"][0]["verdict"] == "reproduced"


def test_search_and_runs(full):
    assert get(full, "/api/search?q=wavelet+transform&limit=1")["papers"][0]["slug"] == "wavemix"
    (run,) = get(full, "/api/runs")["runs"]
    assert (run["paper"], run["state"], run["verdict"]) == ("cs/0112017", "queued", None)
    assert "person" not in run and "ada@example.org" not in str(run)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("papers?date=2026-13-01", "date"),
        ("papers?date=2026-02-30", "date"),
        ("papers?date=yesterday", "date"),
        ("papers?week=2025-W54", "week"),
        ("papers?week=2025-W53", "week"),
        ("daily_papers?month=2025-13", "month"),
        ("daily_papers?limit=0", "limit"),
        ("papers?limit=101", "limit"),
        ("papers/search?limit=1000", "limit"),
        ("daily_papers?p=-1", "p"),
        ("papers?verdict=good", "verdict"),
        ("papers?view=best", "view"),
        ("daily_papers?sort=name", "sort"),
        ("search", "q"),
        ("papers/search?q=%22", "q"),
    ],
)
def test_what_cannot_be_read_is_named(full, query, field):
    (problem,) = get(full, f"/api/{query}", 422)["detail"]
    assert problem["field"] == f"query.{field}" and problem["message"]


def test_a_week_53_that_exists_is_one(full):
    assert get(full, "/api/papers?week=2026-W53")["papers"] == []


def test_nothing_can_be_changed(full):
    answer = full.client.post("/api/papers")
    assert answer.status_code == 405 and answer.headers["content-type"] == "application/json"


def test_the_page_for_people(full):
    text = full.client.get("/api").text
    assert "<h1>For programs</h1>" in text
    for path in ("/api/papers/sla.md", "/api/daily_papers", "/api/openapi.json"):
        assert f'href="{path}"' in text and full.client.get(path).status_code == 200


def test_a_paper_as_text(full):
    text = full.client.get("/api/papers/itransformer.md")
    assert text.headers["content-type"] == "text/markdown; charset=utf-8"
    assert text.text.startswith("# iTransformer: Inverted Transformers")
    result = catalog.recorded(catalog.shipped_results())["itransformer.etth1.cpu"]
    assert f"- Verdict: {result.verdict}" in text.text
    assert "\n\n\n" not in text.text


def test_the_client_of_huggingface_hub_reads_the_daily_list(full, address):
    client = HfApi(endpoint=address, token=False)
    papers = list(client.list_daily_papers())
    assert len(papers) == 35
    first = papers[0]
    assert first.id == "cs/0112017" and first.title == "An old paper" and first.upvotes == 4
    assert first.submitted_by.fullname == "ada" and first.authors[0].name == "Ada Lovelace"
    by_id = {paper.id: paper for paper in papers}
    for card in catalog.papers():
        paper = by_id[card.arxiv]
        assert paper.title == card.title and paper.summary == card.summary
        assert (paper.published_at and paper.published_at.date().isoformat()) == card.published
        assert (paper.organization and paper.organization.fullname) == card.organisation
        assert paper.submitted_at.date().isoformat() == "2026-11-25"
        assert paper.github_repo == card.code
    assert [paper.comments for paper in papers if paper.comments] != []


def test_with_all_its_parameters(full, address):
    client = HfApi(endpoint=address, token=False)
    listed = lambda **how: [paper.id for paper in client.list_daily_papers(**how)]  # noqa: E731
    assert listed(date="2026-11-26") == listed(submitter="ada") == ["cs/0112017"]
    assert len(listed(date="2026-11-25")) == 34 and len(listed(week="2026-W48")) == 35
    assert len(listed(month="2026-11", sort="trending")) == 35
    assert listed(sort="trending", limit=1) == ["cs/0112017"]
    assert listed(submitter="nobody") == listed(month="2026-10") == listed(p=3) == []
    assert listed(limit=20, p=0) + listed(limit=20, p=1) == listed()
    with pytest.raises(HfHubHTTPError):
        listed(week="2025-W54")


def test_its_other_questions_about_papers(full, address):
    client = HfApi(endpoint=address, token=False)
    assert "2205.14375" in [paper.id for paper in client.list_papers(query="wavelet transform", limit=3)]
    assert client.paper_info("2502.10389").title.startswith("Region-Adaptive Sampling")
    with pytest.raises(HfHubHTTPError):
        client.paper_info("0000.00000")
    assert client.read_paper("2509.24006").startswith("# SLA")


@pytest.fixture(scope="module")
def described(address):
    """The description, with one exception: a query may be refused for what a schema cannot say."""
    checks = {"positive_data_acceptance": {"expected-statuses": ["2xx", "404", "422"]}}
    config = SchemathesisConfig.from_dict({"checks": checks})
    return schemathesis.openapi.from_url(f"{address}/api/openapi.json", config=config)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_described(described, mode):
    """Each operation with generated requests, right and wrong: answers are those of the description."""
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 9
    if mode is GenerationMode.NEGATIVE:  # any text is a name, if of nothing
        operations = [operation for operation in operations if "{" not in operation.path]
    for operation in operations:

        @settings(
            max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers_as_described(case):
            case.call_and_validate()

        answers_as_described()


def test_the_description_is_small_enough_to_read(address):
    described = httpx.get(f"{address}/api/openapi.json").json()
    for path, operations in described["paths"].items():
        assert path.startswith("/api/") and set(operations) == {"get"}
        assert {"200", "422"} <= set(operations["get"]["responses"])
        assert operations["get"]["summary"]
