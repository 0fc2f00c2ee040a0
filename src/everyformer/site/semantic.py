"""The semantic index: texts as vectors of which near ones mean near things, kept in memory by each web process.

An embedder is fitted by the worker, which has scikit-learn; its state and the papers' vectors are in the database. A web
process reads both and answers with numpy alone.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import itertools
import re
import secrets
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from everyformer.site.models import Paper, PaperVector, SemanticModel
from everyformer.site.query import STOP_WORDS
from everyformer.site.web import Site

Floats = np.ndarray[Any, np.dtype[np.float32]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

GROWN = 0.1  # the index is fitted anew when a tenth of the papers has come or gone since
BATCH = 1000
EXACT = 20_000  # up to so many papers each query is compared with all; beyond, with those in the nearest cells
CELLS, NEAR_CELLS = 256, 32


class Embedder(Protocol):
    """What ``settings.embedder`` names: a class without arguments whose vectors of near texts have a high cosine.

    ``lowest`` is the cosine from which a paper is an answer to a query.
    """

    lowest: float

    def fit(self, texts: Sequence[str]) -> None:
        """Learn from the papers' texts; nothing to do for a model that comes trained."""

    def encode(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """A row for each text. A paper's has length one or is zero; a query's may be shorter than one."""

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """What was learned, as plain arrays."""

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """The opposite of :meth:`state`."""


class LSA:
    """Latent semantic analysis: tf-idf of words and pairs of words, reduced by a truncated SVD.

    A query keeps the length that its projection has: words that no paper uses lower every cosine.
    """

    lowest = 0.06
    components_wanted = 200
    largest_vocabulary = 30_000
    largest_sample = 20_000  # a fit sees this many papers at most, taken evenly; the others are folded in

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.idf = np.zeros(0, np.float32)
        self.components = np.zeros((0, 0), np.float16)  # a row for each term

    def fit(self, texts: Sequence[str]) -> None:
        """Learn vocabulary, weights and components from ``texts``."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        sample = texts[:: len(texts) // self.largest_sample + 1]
        counter = TfidfVectorizer(
            analyzer=terms_of,
            sublinear_tf=True,
            min_df=1 if len(sample) < 1000 else 3,
            max_features=self.largest_vocabulary,
            dtype=np.float32,
        )
        try:
            weights = counter.fit_transform(sample)
        except ValueError:  # no term at all
            self.__init__()  # type: ignore[misc]
            return
        self.index = {term: place for place, term in enumerate(counter.get_feature_names_out())}
        self.idf = counter.idf_.astype(np.float32)
        size = min(self.components_wanted, *weights.shape)
        if size < min(weights.shape):
            svd = TruncatedSVD(size, random_state=0).fit(weights)
            self.components = svd.components_.T.astype(np.float16)
        else:  # so few papers that nothing is left out
            self.components = np.linalg.svd(weights.toarray(), full_matrices=False)[2].T.astype(np.float16)

    def encode(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """The texts' projections, with numpy alone."""
        vectors = np.zeros((len(texts), self.components.shape[1]), np.float32)
        unknown_idf = self.idf.max(initial=1.0)
        for row, text in enumerate(texts):
            counts: dict[str, int] = {}
            for term in terms_of(text):
                counts[term] = counts.get(term, 0) + 1
            known = [(self.index[term], count) for term, count in counts.items() if term in self.index]
            if not known:
                continue
            places, numbers = (np.array(values) for values in zip(*known, strict=True))
            weights = (1 + np.log(numbers)) * self.idf[places]
            vector = weights.astype(np.float32) @ self.components[places].astype(np.float32)
            if query:
                missing = sum(" " not in term and term not in self.index for term in counts)
                length = np.sqrt((weights**2).sum() + missing * unknown_idf**2)
            else:
                length = np.linalg.norm(vector)
            vectors[row] = vector / max(length, 1e-9)
        return vectors

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Vocabulary, weights and components."""
        vocabulary = np.frombuffer("\n".join(self.index).encode(), np.uint8)
        return {"vocabulary": vocabulary, "idf": self.idf, "components": self.components}

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """From :meth:`state`."""
        terms = state["vocabulary"].tobytes().decode()
        self.index = {term: place for place, term in enumerate(terms.split("\n"))} if terms else {}
        self.idf, self.components = state["idf"], state["components"]


_ENDING_WORDS = """s es ed ing ings er ers or ors ion ions ation ations ational ator ators ate ates ated ating ize izes
    ized izing ise ises ised ising ization izations isation isations ly al ally ic ical ically ive
    ives ively ence ent ents ance ant ants ment ments ness ful able ible ability ity ous"""
_ENDINGS = sorted(_ENDING_WORDS.split(), key=len, reverse=True)


@functools.lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """A word without its English endings, so that ``forecasting`` meets ``forecasts``. Rough on purpose."""
    for _ in range(2):  # train-er-s, gener-at-ive
        ending = next((ending for ending in _ENDINGS if word.endswith(ending) and len(word) - len(ending) >= 4), "")
        word = word[: len(word) - len(ending)]
    if len(word) > 4 and word[-1] == word[-2]:
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word[-1] in "eiy" else word


# A small collection teaches no synonyms, so those of the field are given: each line's words count as one.
_SAME = """
    image picture photo photograph
    video clip film movie
    survey review overview guide tutorial
    fast quick rapid speed accelerate speedup
    cheap efficient economical inexpensive affordable
    small little tiny compact lightweight
    hard difficult challenging
    generate synthesis synthesize create
    predict forecast extrapolate
    quantize quantization discretize
    layer block
    shared share reuse tied
    tune finetune adapt
    memory footprint
    large big huge
    time temporal
    space spatial
    frozen fixed freeze
    parameter weight
    compute computation computational flops
    way path route
    maze labyrinth
    phone mobile smartphone
"""
_SHORT = {
    "llm": "large language model", "llms": "large language models", "vit": "vision transformer",
    "vits": "vision transformers", "rl": "reinforcement learning", "nas": "neural architecture search",
    "gnn": "graph neural network", "gnns": "graph neural networks", "mpnn": "message passing neural network",
    "t2v": "text to video", "t2i": "text to image", "moe": "mixture of experts", "ssm": "state space model",
    "icl": "in context learning", "dit": "diffusion transformer", "dits": "diffusion transformers",
}  # fmt: skip
_MEANT = {stem(word): stem(line.split()[0]) for line in _SAME.strip().splitlines() for word in line.split()}


def terms_of(text: str) -> list[str]:
    """Stems of the words that say something, and each two that follow one another."""
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    words: list[str] = []
    for word in re.findall(r"[^\W_]+", plain):
        words += [stem(part) for part in _SHORT.get(word, word).split() if part not in STOP_WORDS]
    words = [_MEANT.get(word, word) for word in words]
    return [*words, *(f"{one} {two}" for one, two in itertools.pairwise(words))]


def text_of(paper: Paper) -> str:
    """What the index knows of a paper."""
    return "\n".join([paper.title, paper.title, paper.summary, paper.abstract, " ".join(paper.tags)])


def new_embedder(name: str) -> Embedder:
    """An embedder by ``module:Class``; raises ``ValueError`` that names the setting when there is none."""
    module, _, attribute = name.partition(":")
    try:
        embedder: Embedder = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"embedder must name a class as module:Class, got {name!r}: {error}") from error
    return embedder


# Keeping the index: the worker's part.


def refit(site: Site) -> bool:
    """Bring the stored index up to date; whether there was something to do.

    Fits anew when there is no index, the setting names another embedder, or a tenth of the papers came or went; else
    only papers that have no vector yet are encoded.
    """
    with site.database.read() as session:
        count = session.scalar(sa.select(sa.func.count()).select_from(Paper)) or 0
        current = latest_model(session)
        if not count:
            return False
        if (
            current
            and current.embedder == site.settings.embedder
            and abs(count - current.papers) <= GROWN * current.papers
        ):
            missing = _without_vector(current.name)
            if not session.scalar(sa.select(sa.exists(missing))):
                return False
            embedder, name = _restored(current), current.name
        else:
            embedder, name = new_embedder(site.settings.embedder), ""
            embedder.fit([text for _, text in _texts(session, sa.select(Paper))])
    if name:
        _encode_all(site, embedder, name)
        return True
    name = secrets.token_hex(8)
    _encode_all(site, embedder, name)
    file = io.BytesIO()
    np.savez(file, **embedder.state())  # type: ignore[arg-type]
    with site.database.write() as session:
        session.execute(sa.delete(SemanticModel))
        session.add(
            SemanticModel(
                name=name, embedder=site.settings.embedder, papers=count, fitted_at=site.now(), state=file.getvalue()
            )
        )
        if site.database.is_sqlite:
            # Many papers are new: with their words in one tree, a search needs a third less time.
            session.execute(sa.text("INSERT INTO paper_fts(paper_fts) VALUES ('optimize')"))
    return True


def latest_model(session: Session) -> SemanticModel | None:
    """The model that is in use."""
    return session.scalars(sa.select(SemanticModel).order_by(SemanticModel.fitted_at.desc()).limit(1)).first()


def _restored(row: SemanticModel) -> Embedder:
    embedder = new_embedder(row.embedder)
    with np.load(io.BytesIO(row.state), allow_pickle=False) as state:
        embedder.restore({name: state[name] for name in state.files})
    return embedder


def _without_vector(model: str) -> sa.Select[Paper]:
    encoded = sa.select(PaperVector.paper_id).where(PaperVector.model == model)
    return sa.select(Paper).where(Paper.id.not_in(encoded))


def _texts(session: Session, statement: sa.Select[Paper]) -> Iterator[tuple[int, str]]:
    for paper in session.scalars(statement.order_by(Paper.id).execution_options(yield_per=BATCH)):
        yield paper.id, text_of(paper)


def _encode_all(site: Site, embedder: Embedder, model: str) -> None:
    """Give every paper that lacks one a vector of ``model``; each batch is a short transaction of its own."""
    while True:
        with site.database.read() as session:
            found = list(_texts(session, _without_vector(model).order_by(Paper.id).limit(BATCH)))
        if not found:
            return
        vectors = embedder.encode([text for _, text in found])
        with site.database.write() as session:
            _put(session, model, [paper for paper, _ in found], vectors)


def _put(session: Session, model: str, papers: Sequence[int], vectors: Floats) -> None:
    session.execute(sa.delete(PaperVector).where(PaperVector.paper_id.in_(papers)))
    still_there = set(session.scalars(sa.select(Paper.id).where(Paper.id.in_(papers))))
    rows = [
        {"paper_id": paper, "model": model, "vector": vector.astype(np.float32).tobytes()}
        for paper, vector in zip(papers, vectors, strict=True)
        if paper in still_there
    ]
    if rows:
        session.execute(sa.insert(PaperVector), rows)


# Asking the index: the web's part.


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A model with every paper's vector. Rows of one cell, the papers nearest to its centre, stand together."""

    model: str
    embedder: Embedder
    papers: Integers
    vectors: Floats
    centres: Floats
    starts: Integers

    def nearest(self, vector: Floats, count: int, among: Sequence[int] | None = None) -> list[tuple[int, float]]:
        """Papers and cosines, the nearest first; ``among`` narrows to these papers."""
        papers, vectors = self.papers, self.vectors
        if among is not None:
            places = np.flatnonzero(np.isin(papers, np.fromiter(among, np.int64)))
            papers, cosines = papers[places], vectors[places] @ vector
        elif len(self.centres):
            cells = np.argpartition(-(self.centres @ vector), NEAR_CELLS)[:NEAR_CELLS]
            rows = [slice(self.starts[cell], self.starts[cell + 1]) for cell in cells]
            papers = np.concatenate([papers[some] for some in rows])
            cosines = np.concatenate([vectors[some] @ vector for some in rows])
        else:
            cosines = vectors @ vector
        if len(papers) > count:
            best = np.argpartition(-cosines, count)[:count]
            papers, cosines = papers[best], cosines[best]
        order = np.lexsort((-papers, -cosines))
        return list(zip(papers[order].tolist(), cosines[order].tolist(), strict=True))


class Index:
    """The semantic index of a site in this process; it looks for a new one at most once a second.

    It uses the session of who asks: a second connection for each of many readers would be one too many.
    """

    LOOK_EVERY = 1.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._looked = -self.LOOK_EVERY

    def answers(self, session: Session, text: str, count: int, among: Sequence[int] | None = None) -> list[int]:
        """Papers about what ``text`` says, best first; nothing when there is no index yet or nothing is near."""
        loaded = self.current(session)
        if loaded is None:
            return []
        vector = loaded.embedder.encode([text], query=True)[0]
        return [paper for paper, cosine in loaded.nearest(vector, count, among) if cosine >= loaded.embedder.lowest]

    def neighbours(self, session: Session, paper: Paper, count: int) -> list[int]:
        """The papers nearest to ``paper``, without it."""
        loaded = self.current(session)
        if loaded is None:
            return []
        vector = loaded.embedder.encode([text_of(paper)])[0]
        found = loaded.nearest(vector, count + 1)
        return [other for other, cosine in found if other != paper.id and cosine >= loaded.embedder.lowest][:count]

    def add(self, session: Session, papers: Sequence[Paper]) -> None:
        """Fold papers in at once, when there is an index; they need their ``id``."""
        loaded = self.current(session)
        for start in range(0, len(papers) if loaded else 0, BATCH):
            some = papers[start : start + BATCH]
            assert loaded is not None
            vectors = loaded.embedder.encode([text_of(paper) for paper in some])
            _put(session, loaded.model, [paper.id for paper in some], vectors)

    def current(self, session: Session) -> _Loaded | None:
        """The index as it is in memory, after a look for changes when the last one is a second ago or found nothing."""
        if self._is_new():
            return self._loaded
        # While one thread reads a new index, the others go on with what there is; the first of all waits.
        if not self._lock.acquire(blocking=self._loaded is None):
            return self._loaded
        try:
            if not self._is_new():
                self._loaded = self._look(session)
                self._looked = time.monotonic()
            return self._loaded
        finally:
            self._lock.release()

    def _is_new(self) -> bool:
        return self._loaded is not None and time.monotonic() - self._looked < self.LOOK_EVERY

    def _look(self, session: Session) -> _Loaded | None:
        before = self._loaded
        newest = sa.select(SemanticModel.name).order_by(SemanticModel.fitted_at.desc()).limit(1)
        name = session.scalar(newest)
        if name is None:
            return None
        of_model = sa.select(PaperVector.paper_id, PaperVector.vector).where(PaperVector.model == name)
        if before is None or before.model != name:
            row = latest_model(session)
            assert row is not None
            return _load(row.name, _restored(row), list(session.execute(of_model).tuples()))
        count = session.scalar(sa.select(sa.func.count()).where(PaperVector.model == name)) or 0
        if count <= len(before.papers):  # fewer: a new model is being written, or a paper was removed
            return before
        known = set(before.papers.tolist())
        ids = session.scalars(sa.select(PaperVector.paper_id).where(PaperVector.model == name))
        new = [paper for paper in ids if paper not in known]
        more = [
            row
            for start in range(0, len(new), BATCH)
            for row in session.execute(of_model.where(PaperVector.paper_id.in_(new[start : start + BATCH]))).tuples()
        ]
        return _load(name, before.embedder, more, before)


def _load(name: str, embedder: Embedder, rows: Sequence[tuple[int, bytes]], before: _Loaded | None = None) -> _Loaded:
    papers = np.array([paper for paper, _ in rows], np.int64)
    vectors = np.frombuffer(b"".join(vector for _, vector in rows), np.float32).reshape(len(rows), -1 if rows else 0)
    if before is not None:
        papers, vectors = np.concatenate([before.papers, papers]), np.concatenate([before.vectors, vectors])
    if len(papers) <= EXACT:
        return _Loaded(name, embedder, papers, vectors, vectors[:0], papers[:0])
    # Papers drawn at random are centres as good as any that take longer to find.
    centres = vectors[np.random.default_rng(0).choice(len(papers), CELLS, replace=False)]
    batches = (vectors[start : start + BATCH] for start in range(0, len(papers), BATCH))
    cell = np.concatenate([(batch @ centres.T).argmax(axis=1) for batch in batches])
    order = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[order], np.arange(CELLS + 1))
    return _Loaded(name, embedder, papers[order], vectors[order], centres, starts)
