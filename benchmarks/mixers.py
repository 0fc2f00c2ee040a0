"""The cheaper token mixers of `everyformer.mixers` beside the modules of transformers and of the packages for each.

`python benchmarks/mixers.py` times a forward pass and a training step at equal shapes, windows and features, and writes
`mixers.json` here. Packages that are not installed are left out; transformers is needed.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BigBirdConfig, LongformerConfig, NystromformerConfig, ReformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from everyformer import mixers
from everyformer.lab.bench import Case, record, run_cases

BATCH, DIM, HEADS = 2, 256, 4
WIDTH = {"hidden_size": DIM, "num_attention_heads": HEADS, "attention_probs_dropout_prob": 0.0}


class Theirs(nn.Module):
    """A peer's attention and the output projection that transformers keeps elsewhere."""

    def __init__(self, attention: nn.Module, *arguments: Any, projected: bool = False, **named: Any) -> None:
        super().__init__()
        self.attention, self.arguments, self.named = attention, arguments, named
        self.out = nn.Identity() if projected else nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x, *self.arguments, **self.named)
        return self.out(y if isinstance(y, Tensor) else y[0])


def longformer(tokens: int) -> Theirs:
    """Windows of 128 to both sides and one global token."""
    attention = LongformerSelfAttention(LongformerConfig(attention_window=[256], **WIDTH), 0)
    first = torch.zeros(BATCH, tokens, dtype=torch.bool)
    first[:, 0] = True
    nothing = torch.zeros_like(first)
    named = {"is_index_masked": nothing, "is_index_global_attn": first, "is_global_attn": True}
    return Theirs(attention, 10_000.0 * first, **named)


def bigbird(tokens: int) -> Theirs:
    """Blocks of 64, three of them random."""
    config = BigBirdConfig(block_size=64, num_random_blocks=3, use_bias=False, max_position_embeddings=tokens, **WIDTH)
    blocked, band, start, end = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(BATCH, tokens), 64)
    return Theirs(BigBirdBlockSparseAttention(config, seed=0), band, start, end, blocked, blocked)


def reformer(causal: bool) -> Theirs:
    """Chunks of 64, 32 buckets and four rounds."""
    config = ReformerConfig(
        attention_head_size=DIM // HEADS, lsh_attn_chunk_length=64, num_hashes=4, num_buckets=32, is_decoder=causal,
        lsh_attention_probs_dropout_prob=0.0, hash_seed=0, **WIDTH,
    )  # fmt: skip
    return Theirs(LSHSelfAttention(config))


def nystrom(tokens: int) -> Theirs:
    """64 landmarks, without the convolution."""
    attention = NystromformerSelfAttention(NystromformerConfig(num_landmarks=64, segment_means_seq_len=tokens, **WIDTH))
    attention.conv_kernel_size, attention.conv = None, None
    return Theirs(attention)


class Windows(nn.Module):
    """local-attention's windows between projections."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        kind = importlib.import_module("local_attention").LocalAttention
        self.local = kind(128, causal=causal, exact_windowsize=True, use_rotary_pos_emb=False)
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.local(query, key, value).transpose(1, 2).flatten(2)


def package(module: str, name: str, *arguments: Any, **named: Any) -> Callable[[], Theirs]:
    """A package's whole attention, made when it is asked for."""
    return lambda: Theirs(getattr(importlib.import_module(module), name)(*arguments, **named), projected=True)


def peers(tokens: int) -> Iterator[tuple[str, bool, dict[str, Any], dict[str, Callable[[], Theirs]]]]:
    """Mixer, whether it is causal, its options, and its peers."""
    shape = {"heads": HEADS, "dim_head": DIM // HEADS}
    for causal in (False, True):
        yield "window", causal, {"window": 128}, {"local-attention": lambda causal=causal: Theirs(Windows(causal))}
    yield "longformer", False, {"window": 128}, {"transformers": lambda: longformer(tokens)}
    yield "bigbird", False, {"block": 64, "random_blocks": 3}, {"transformers": lambda: bigbird(tokens)}
    for causal in (False, True):
        theirs = package(
            "reformer_pytorch", "LSHSelfAttention", DIM, heads=HEADS, bucket_size=64, n_hashes=4, causal=causal
        )
        both = {"transformers": lambda causal=causal: reformer(causal), "reformer-pytorch": theirs}
        yield "reformer", causal, {"chunk": 64, "buckets": 32, "rounds": 4}, both
    theirs = package("nystrom_attention", "NystromAttention", DIM, num_landmarks=64, residual=False, **shape)
    yield "nystrom", False, {"landmarks": 64}, {"transformers": lambda: nystrom(tokens), "nystrom-attention": theirs}
    theirs = package("linformer", "LinformerSelfAttention", DIM, tokens, k=128, heads=HEADS)
    yield "linformer", False, {"features": 128}, {"linformer": theirs}
    for causal in (False, True):
        theirs = package("performer_pytorch", "SelfAttention", DIM, causal=causal, nb_features=256, **shape)
        yield "performer", causal, {"features": 256}, {"performer-pytorch": theirs}
        theirs = package("linear_attention_transformer.linear_attention_transformer", "SelfAttention", DIM, causal=causal,
                         blindspot_size=1, **shape)  # fmt: skip
        yield "linear", causal, {}, {"linear-attention-transformer": theirs}


def cases(tokens: int, only: list[str]) -> Iterator[Case]:
    """A forward pass and a training step of every mixer that has a peer here."""
    for name, causal, options, others in peers(tokens):
        if only and name not in only:
            continue
        made = {}
        for who, make in others.items():
            try:
                made[who] = make()
            except ModuleNotFoundError as missing:
                print(f"{who} is left out: {missing}")
        ours = mixers.create(name, DIM, heads=HEADS, causal=causal, length=tokens, **options)
        x = torch.randn(BATCH, tokens, DIM)
        title = f"{name}, {'causal' if causal else 'both ways'}, {tokens} tokens"
        for kind, way in (("forward", forward), ("training step", step)):
            if made:
                timed = {who: way(other, x) for who, other in made.items()}
                yield Case(f"{title}, {kind}", way(ours, x), timed, target=1 / 1.3)


def forward(mixer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A pass without gradients."""

    def once() -> None:
        with torch.no_grad():
            mixer(x)

    return once


def step(mixer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A pass and its gradients."""

    def once() -> None:
        leaf = x.detach().requires_grad_()
        mixer(leaf).square().sum().backward()
        mixer.zero_grad()

    return once


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--only", nargs="*", default=[], help="names of mixers")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    listed = cases(arguments.tokens, arguments.only)
    rows = run_cases(listed, arguments.rounds, "cpu", report=lambda row: print(row.name, row.seconds, row.ratios))
    print(record("mixers", rows, "cpu", arguments.out))
