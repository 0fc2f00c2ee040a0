"""The index that finds by meaning: fitted once, folded in at once, read without scikit-learn."""

import datetime
import io
import subprocess
import sys

import numpy as np
import pytest
import sqlalchemy as sa

from everyformer.site import semantic
from everyformer.site.catalogue import import_catalogue
from everyformer.site.models import PaperVector, SemanticModel
from everyformer.site.semantic import LSA, Index, new_embedder, refit, stem, terms_of

TEXTS = [
    "Cats chase mice in the garden", "Mice fear cats and owls", "Stars burn hydrogen", "Planets circle stars",
    "Owls hunt mice at night", "Hydrogen is the lightest element",
]  # fmt: skip


def test_near_texts_have_a_high_cosine_and_words_nobody_uses_lower_it():
    lsa = LSA()
    lsa.fit(TEXTS)
    papers = lsa.encode(TEXTS)
    assert np.linalg.norm(papers, axis=1) == pytest.approx(1, abs=1e-3)
    cosines = papers @ lsa.encode(["a cat and a mouse, mice"], query=True)[0]
    assert set(np.argsort(-cosines)[:3]) == {0, 1, 4}
    half = papers @ lsa.encode(["mice zyzzyva quux"], query=True)[0]
    whole = papers @ lsa.encode(["mice"], query=True)[0]
    assert half.max() < 0.8 * whole.max()
    assert not lsa.encode(["zyzzyva", "", "the of"], query=True).any()


def test_the_state_is_plain_arrays_and_gives_the_same_vectors():
    first, second = LSA(), LSA()
    first.fit(TEXTS)
    file = io.BytesIO()
    np.savez(file, **first.state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as state:
        second.restore({name: state[name] for name in state.files})
    assert np.array_equal(first.encode(TEXTS), second.encode(TEXTS))


@pytest.mark.parametrize("texts", [[""], ["the of"], ["one"], ["one one", "one"], []])
def test_nearly_nothing_can_be_fitted(texts):
    lsa = LSA()
    lsa.fit(texts or [""])
    assert np.isfinite(lsa.encode(["one two"])).all()
    restored = LSA()
    restored.restore(lsa.state())
    assert restored.encode(["one two"]).shape == lsa.encode(["one two"]).shape


def test_forms_of_a_word_meet():
    for one, two in (
        ("forecasting", "forecasts"),
        ("turbulent", "turbulence"),
        ("quantised", "quantization"),
        ("images", "pictures"),
    ):
        assert terms_of(one) == terms_of(two)
    assert stem("bus") == "bus" and stem("gas") == "gas"
    assert "language model" in " ".join(terms_of("LLM")).replace("languag", "language")


def models(page):
    with page.database.read() as session:
        return session.scalars(sa.select(SemanticModel)).all()


def vectors(page):
    with page.database.read() as session:
        return dict(session.execute(sa.select(PaperVector.paper_id, PaperVector.model)).tuples().all())


def answers(page, text, count):
    with page.database.read() as session:
        return page.site.semantic.answers(session, text, count)


def test_refit_fits_when_a_tenth_is_new_and_folds_in_before_that(any_page):
    assert refit(any_page.site) is False, "nothing to fit on"
    papers = [any_page.add_paper(f"2401.{number:05}", title=TEXTS[number % 6]).id for number in range(20)]
    assert refit(any_page.site) is True
    first = models(any_page)
    assert len(first) == 1 and vectors(any_page) == dict.fromkeys(papers, first[0].name)
    assert refit(any_page.site) is False
    new = any_page.add_paper("2402.00001", title="Stars and mice").id
    assert refit(any_page.site) is True
    assert models(any_page)[0].name == first[0].name and new in vectors(any_page)
    for number in range(5):
        any_page.add_paper(f"2403.{number:05}", title="Comets pass")
    assert refit(any_page.site) is True
    second = models(any_page)
    assert len(second) == 1 and second[0].name != first[0].name
    assert set(vectors(any_page).values()) == {second[0].name} and len(vectors(any_page)) == 26


def test_another_embedder_is_a_reason_to_refit(site_page, monkeypatch):
    site_page.add_paper(title="One paper")
    refit(site_page.site)
    monkeypatch.setattr(site_page.site.settings, "embedder", f"{__name__}:Letters")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert refit(site_page.site) is True
    assert models(site_page)[0].embedder.endswith(":Letters")
    assert answers(site_page, "paper one", 5)


class Letters:
    """An embedder of one's own: how often each letter occurs."""

    lowest = 0.5

    def fit(self, texts):
        pass

    def encode(self, texts, *, query=False):
        counts = np.array([[text.lower().count(chr(97 + place)) for place in range(26)] for text in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)

    def state(self):
        return {}

    def restore(self, state):
        pass


@pytest.mark.parametrize("name", ["nothing", "no.module:Here", "everyformer.site.semantic:Nobody", ":"])
def test_an_embedder_that_is_not_there(name):
    with pytest.raises(ValueError, match="embedder must name a class as module:Class"):
        new_embedder(name)


def test_a_process_notices_new_papers_and_new_models(site_page, monkeypatch):
    monkeypatch.setattr(Index, "LOOK_EVERY", 0.0)
    index = site_page.site.semantic
    assert answers(site_page, "mice", 5) == []
    for number in range(20):
        site_page.add_paper(f"2401.{number:05}", title=TEXTS[number % 6])
    refit(site_page.site)
    before = answers(site_page, "comets of mice", 30)
    assert len(before) >= 3
    late = site_page.add_paper("2402.00001", title="Mice and mice and mice")
    with site_page.database.write() as session:
        index.add(session, [late])
    assert late.id in answers(site_page, "mice", 30)
    for number in range(5):
        site_page.add_paper(f"2403.{number:05}", title="Comets pass")
    assert answers(site_page, "comets", 30) == []
    refit(site_page.site)
    assert len(answers(site_page, "comets", 30)) == 5


def test_the_index_is_asked_for_changes_once_a_second_at_most(site_page, monkeypatch):
    site_page.add_paper()
    refit(site_page.site)
    index = site_page.site.semantic
    answers(site_page, "paper", 1)
    monkeypatch.setattr(index, "_look", lambda session: pytest.fail("looked again"))
    answers(site_page, "paper", 1)


def test_cells_find_nearly_all_of_the_nearest(monkeypatch):
    monkeypatch.setattr(semantic, "EXACT", 1000)
    random = np.random.default_rng(0)
    topics = random.normal(size=(40, 64))
    near = (topics[random.integers(40, size=4000)] + 0.5 * random.normal(size=(4000, 64))).astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    rows = [(number + 1, vector.tobytes()) for number, vector in enumerate(near)]
    loaded = semantic._load("m", LSA(), rows)
    assert len(loaded.centres) == semantic.CELLS
    shares = []
    for query in near[:50]:
        exact = set((np.argsort(-(near @ query))[:25] + 1).tolist())
        shares.append(len(exact & {paper for paper, _ in loaded.nearest(query, 25)}) / 25)
    assert np.mean(shares) > 0.95
    some = [5, 17, 3999]
    assert {paper for paper, _ in loaded.nearest(near[0], 25, some)} == set(some)
    more = semantic._load("m", LSA(), [(5000, near[0].tobytes())], loaded)
    assert {paper for paper, _ in more.nearest(near[0], 2)} == {1, 5000}


def test_a_vector_of_a_removed_paper_is_no_result(site_page):
    paper = site_page.add_paper(title="Mice")
    site_page.add_paper("2402.00001", title="Mice too")
    refit(site_page.site)
    answers(site_page, "mice", 5)
    with site_page.database.write() as session:
        session.delete(session.merge(paper))
    answer = site_page.client.get("/api/search", params={"q": "mice"})
    assert [found["id"] for found in answer.json()["papers"]] == ["2402.00001"]


def test_the_web_needs_neither_scikit_learn_nor_scipy(site_page):
    import_catalogue(site_page.site)
    refit(site_page.site)
    code = f"""
import sys
from fastapi.testclient import TestClient
from everyformer.site.app import create_app
from everyformer.site.settings import Settings
app = create_app(Settings(_env_file=None, data={str(site_page.site.settings.data)!r}, requests_per_minute=0))
with TestClient(app, base_url="http://127.0.0.1:8000") as client:
    answer = client.get("/api/search", params={{"q": "cheaper long clips"}})
    assert answer.status_code == 200, answer.text
    assert app.state.site.semantic._loaded is not None
print([name for name in ("sklearn", "scipy", "torch") if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "[]", said.stdout + said.stderr


def test_when_it_was_fitted_is_known(site_page):
    site_page.add_paper()
    refit(site_page.site)
    (model,) = models(site_page)
    assert model.fitted_at == site_page.clock() and model.papers == 1
    assert isinstance(model.fitted_at, datetime.datetime)
