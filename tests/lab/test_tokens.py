"""Byte-pair tokenisers and packed documents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everyformer.lab.tokens import byte_pairs, pack
from everyformer.parts.language import LanguageModel


def test_byte_pairs_write_any_text() -> None:
    tokenizer = byte_pairs(["to be or not to be, that is the question"] * 20, 300, special=["<end>"])
    assert tokenizer.token_to_id("<end>") == 0
    text = "to be — Ωmega, never seen\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("to be or not").ids) < len("to be or not")


def test_a_vocabulary_too_small_for_bytes_is_an_error() -> None:
    with pytest.raises(ValueError, match="vocabulary must be at least 256 and 1 special tokens, got 256"):
        byte_pairs(["text"], 256, special=["<end>"])


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=12))
def test_packed_rows_hold_every_document_once(documents: list[list[int]]) -> None:
    packed = pack(documents, 12)
    found = []
    for tokens, owners in zip(packed.tokens, packed.documents, strict=True):
        found += [tokens[owners == owner].tolist() for owner in owners.unique() if owner >= 0]
    assert sorted(found) == sorted(documents)
    assert len(packed.tokens) <= len(documents)


def test_packed_documents_do_not_see_each_other() -> None:
    documents = [[1, 2, 3, 4], [5, 6, 7], [8, 9]]
    packed = pack(documents, 10)
    model = LanguageModel(vocabulary=10, dim=16, depth=2, heads=2).eval()
    together = model(packed.tokens, mask=packed.mask())
    for number, document in enumerate(documents):
        # A document's first token attends to itself alone, though it stands at another place of the row.
        alone = model(torch.tensor([document]))
        torch.testing.assert_close(together[packed.documents == number], alone[0], atol=1e-5, rtol=1e-4)


def test_targets_end_with_the_document() -> None:
    packed = pack([[1, 2, 3], [4, 5]], 6)
    assert packed.tokens.tolist() == [[1, 2, 3, 4, 5, 0]]
    assert packed.targets().tolist() == [[2, 3, -100, 5, -100, -100]]


@pytest.mark.parametrize("documents", [[[]], [[1] * 5]])
def test_documents_that_cannot_be_packed_are_named(documents: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="documents must have 1 to 4 tokens each"):
        pack(documents, 4)
