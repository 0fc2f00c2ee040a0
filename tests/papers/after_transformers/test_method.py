from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

import everyformer
from everyformer import mixers
from everyformer.papers.after_transformers import connections, links, method, table

KEPT = [entry for entry in table() if entry.state is not None and entry.mixer in mixers.cards()]


@pytest.mark.parametrize("entry", KEPT, ids=lambda entry: entry.name)
@pytest.mark.parametrize("tokens", [40, 100])
def test_the_map_says_what_a_cache_holds(entry, tokens):
    mixer, cache = mixers.create(entry.mixer, 32, heads=4, causal=True), {}
    mixer(torch.randn(1, tokens, 32), cache=cache)
    held = sum(leaf.numel() for leaf in tree_leaves(cache) if torch.is_tensor(leaf))
    assert held == entry.state(32, 4, tokens)


def test_every_mixer_of_the_map_has_a_card_that_agrees():
    for entry in table():
        if entry.mixer in mixers.cards():
            card = mixers.cards()[entry.mixer]
            assert card.arxiv == entry.arxiv and card.cache == (entry.state is not None), entry.name


@pytest.mark.parametrize("link", connections(), ids=lambda link: f"{link.of} and {link.to}")
@pytest.mark.parametrize("tokens", [1, 2, 16, 65, 130])
def test_a_connection_is_exact(link, tokens):
    assert link.gap(tokens, 0) < 1e-12


def test_a_gap_is_seen_where_a_statement_is_broken(monkeypatch):
    """Gates of another text: the check of a connection would find it."""
    ssd = next(link for link in connections() if link.of == "ssd")
    monkeypatch.setattr(links, "gate_matrix", lambda log_gate: torch.ones(2, 40, 40).double().tril())
    assert ssd.gap(40, 0) > 0.01


def test_the_table_stands_in_the_readme():
    assert method.markdown() in (Path(everyformer.paper("after_transformers").folder) / "README.md").read_text()
