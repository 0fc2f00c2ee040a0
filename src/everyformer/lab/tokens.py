"""Text as tokens: a byte-pair vocabulary trained on a text, and documents packed into rows of equal length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def byte_pairs(texts: Iterable[str], vocabulary: int, *, special: Sequence[str] = ()) -> Tokenizer:
    """A byte-level byte-pair tokeniser of ``vocabulary`` tokens (the special ones first), trained on ``texts``.

    Every text can be written with it: rare characters become bytes.

    Raises:
        ValueError: fewer tokens than 256 bytes and the special ones.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocabulary < 256 + len(special):
        raise ValueError(f"vocabulary must be at least 256 and {len(special)} special tokens, got {vocabulary}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Packed:
    """Documents one after the other in rows of equal length.

    Attributes:
        tokens: (rows, length); what is left over at the end of the last row is padding.
        documents: the number of each token's document in its row, -1 for padding.
    """

    tokens: Int[Tensor, "rows length"]
    documents: Int[Tensor, "rows length"]

    def mask(self) -> Bool[Tensor, "rows 1 length length"]:
        """Who sees whom: earlier tokens of the same document."""
        same = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        return same.tril()

    def targets(self) -> Int[Tensor, "rows length"]:
        """The next token of the same document; -100, which losses leave out, where there is none."""
        following = self.tokens.roll(-1, dims=1)
        inside = (self.documents == self.documents.roll(-1, dims=1)) & (self.documents >= 0)
        inside[:, -1] = False
        return following.masked_fill(~inside, -100)


def pack(documents: Sequence[Sequence[int]], length: int, *, padding: int = 0) -> Packed:
    """Put whole documents into as few rows as first-fit on falling length finds.

    Raises:
        ValueError: a document that is empty or longer than ``length``.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(documents)), key=lambda index: -len(documents[index])):
        size = len(documents[number])
        if not 0 < size <= length:
            raise ValueError(f"documents must have 1 to {length} tokens each, got {size}")
        row = next((index for index, left in enumerate(room) if left >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(number)
        room[row] -= size
    tokens = torch.full((len(rows), length), padding)
    owners = torch.full((len(rows), length), -1)
    for row, numbers in enumerate(rows):
        flat = [token for number in numbers for token in documents[number]]
        owner = [place for place, number in enumerate(numbers) for _ in documents[number]]
        tokens[row, : len(flat)], owners[row, : len(flat)] = torch.tensor(flat), torch.tensor(owner)
    return Packed(tokens, owners)
