"""The token mixers of `everyformer.mixers` beside the modules of torch, transformers, timm and of the packages for each.

`python benchmarks/mixer_peers.py` times a forward pass at several lengths and a training step at one, at equal shapes,
windows and features, in turns, and writes `mixer_peers.json` here: for each mixer the fastest library, our time over
that of it, and the exponents with which both grow. What flash-linear-attention has without its kernels are ops, and
compared as such. Packages that are not installed are left out; transformers and timm are needed. `--quick` takes short
sequences and few rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import importlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm.layers
import torch
from timm.models.mlp_mixer import SpatialGatingUnit
from torch import Tensor, nn
from transformers import (
    BigBirdConfig,
    FNetConfig,
    LongformerConfig,
    Mamba2Config,
    NystromformerConfig,
    ReformerConfig,
)
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel
from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from everyformer import mixers
from everyformer.files import write_atomic
from everyformer.lab import environment
from everyformer.lab.bench import Case, Row, run_cases
from everyformer.lab.growth import exponent
from everyformer.lab.measure import forward_pass
from everyformer.parts.mixers.rwkv import gated_attention
from everyformer.parts.mixers.ssd import decayed_attention

BATCH, DIM, HEADS = 2, 256, 4
FACTOR = 1.3  # our time over the fastest library's, at most
LENGTHS, QUICK = (1024, 2048, 4096), (1024, 2048)
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


class Whole(nn.Module):
    """torch's own attention; its mask is made before it is timed."""

    def __init__(self, tokens: int, causal: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, bias=False, batch_first=True)
        self.mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) if causal else None

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False, attn_mask=self.mask, is_causal=self.mask is not None)[0]


class AlongTokens(nn.Module):
    """timm's two-layer network, over tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.mlp = timm.layers.Mlp(tokens, tokens // 2, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


def gates(tokens: int) -> nn.Module:
    """timm's gMLP with gates as wide as a token."""
    unit = functools.partial(SpatialGatingUnit, seq_len=tokens)
    return timm.layers.GatedMlp(DIM, 2 * DIM, gate_layer=unit)


def mamba() -> nn.Module:
    """Mamba-2 without its CUDA kernels: states of 64, chunks of 64."""
    config = Mamba2Config(
        hidden_size=DIM, num_heads=HEADS, head_dim=2 * DIM // HEADS, state_size=64, expand=2, n_groups=1, chunk_size=64,
        use_conv_bias=True, num_hidden_layers=1,
    )  # fmt: skip
    return Mamba2Mixer(config, layer_idx=0)


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


Makers = dict[str, Callable[[], nn.Module]]


def peers(tokens: int) -> Iterator[tuple[str, bool, dict[str, Any], Makers]]:
    """Mixer, whether it is causal, its options, and its peers."""
    shape = {"heads": HEADS, "dim_head": DIM // HEADS}
    for causal in (False, True):
        theirs = package("x_transformers.x_transformers", "Attention", DIM, causal=causal, flash=True, **shape)
        yield "full", causal, {}, {"torch": functools.partial(Whole, tokens, causal), "x-transformers": theirs}
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
    yield "ssd", True, {}, {"transformers": mamba}
    yield "gmlp", False, {}, {"timm": lambda: gates(tokens)}
    yield "mlp_mixer", False, {}, {"timm": lambda: AlongTokens(tokens)}
    transform = FNetConfig(hidden_size=DIM, use_tpu_fourier_optimizations=False)
    yield "fnet", False, {}, {"transformers": lambda: Theirs(FNetBasicFourierTransform(transform), projected=True)}


class Sums(nn.Module):
    """What a mixer does between its projections, with the tokens' heads as queries, keys and values alike."""

    def __init__(self, op: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        y = self.op(x.unflatten(-1, (HEADS, -1)).transpose(1, 2))
        return y[0] if isinstance(y, tuple) else y


def fla(module: str, name: str, call: Callable[[Callable[..., Any], Tensor], Any]) -> Callable[[], Sums]:
    """A naive op of flash-linear-attention; its kernels need a GPU."""
    return lambda: Sums(functools.partial(call, getattr(importlib.import_module(f"fla.ops.{module}"), name)))


def sums(tokens: int) -> Iterator[tuple[str, Sums, Makers]]:
    """Causal mixers without their projections, which a library has as an op alone; all of a kind give the same."""
    fade = torch.log1p(-(2.0 ** -torch.arange(5.0, 5.0 + HEADS))).view(1, HEADS, 1).expand(1, -1, tokens)

    def in_chunks(op: Callable[..., Any], x: Tensor) -> Tensor:
        turned = x.transpose(1, 2)
        return op(turned, turned, turned, fade.expand(BATCH, -1, -1).transpose(1, 2), scale=1.0)[0].transpose(1, 2)

    yield "retention", Sums(lambda x: decayed_attention(x, x, x, fade)), {
        "fla, retention": fla("retention.naive", "naive_retention", lambda op, x: op(x * (DIM // HEADS) ** 0.5, x, x)),
        "fla, simple_gla": fla("simple_gla.naive", "naive_chunk_simple_gla", in_chunks),
    }  # fmt: skip
    forget, bonus = torch.full((BATCH, HEADS, tokens, DIM // HEADS), -0.1), torch.zeros(HEADS, 1, DIM // HEADS)
    yield "rwkv", Sums(lambda x: gated_attention(x, x, x, forget, bonus)), {
        "fla, rwkv6": fla("rwkv6.chunk_naive", "naive_chunk_rwkv6", lambda op, x: op(x, x, x, forget, bonus[:, 0])),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Timed:
    """A row of times, and what was timed."""

    mixer: str
    causal: bool
    tokens: int
    kind: str
    row: Row

    @property
    def library(self) -> str:
        """The fastest of the peers."""
        return min(self.row.ratios, key=self.row.ratios.__getitem__)


def timed(lengths: tuple[int, ...], trained: int, rounds: int, only: list[str], missing: set[str]) -> Iterator[Timed]:
    """A forward pass at each length, and a training step at ``trained`` tokens, of every mixer that has a peer here.

    What is not installed goes into ``missing``.
    """
    for tokens in lengths:
        for name, causal, ours, others in pairs(tokens, only):
            made = installed(others, missing)
            x = torch.randn(BATCH, tokens, DIM)
            title = f"{name}, {'causal' if causal else 'both ways'}, {tokens} tokens"
            for kind, way in (("forward", forward_pass), ("training step", step)):
                if made and (way is forward_pass or tokens == trained):
                    beside = {who: way(other, x) for who, other in made.items()}
                    case = Case(f"{title}, {kind}", way(ours, x), beside, target=1 / FACTOR)
                    (row,) = run_cases([case], rounds, "cpu")
                    yield Timed(name, causal, tokens, kind, row)


def pairs(tokens: int, only: list[str]) -> Iterator[tuple[str, bool, nn.Module, Makers]]:
    """Name, whether it is causal, ours, and its peers."""
    for name, causal, options, others in peers(tokens):
        if not only or name in only:
            yield name, causal, mixers.create(name, DIM, heads=HEADS, causal=causal, length=tokens, **options), others
    for name, ours, others in sums(tokens):
        if not only or name in only:
            yield name, True, ours, others


def installed(others: Makers, missing: set[str]) -> dict[str, nn.Module]:
    """The peers that are here; the names of the others go into ``missing``."""
    made = {}
    for who, make in others.items():
        try:
            made[who] = make()
        except ModuleNotFoundError:
            missing.add(who)
    return made


def step(mixer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A pass and its gradients."""

    def once() -> None:
        leaf = x.detach().requires_grad_()
        mixer(leaf).square().sum().backward()
        mixer.zero_grad()

    return once


def summary(found: list[Timed], trained: int) -> list[dict[str, Any]]:
    """For each mixer: the fastest library, our time over its at ``trained`` tokens, and both exponents."""
    rows = []
    for name, causal in dict.fromkeys((one.mixer, one.causal) for one in found):
        own = [one for one in found if (one.mixer, one.causal) == (name, causal)]
        passes = [one for one in own if one.kind == "forward"]
        ratios = {
            f"{one.kind}, ours over theirs": 1 / min(one.row.ratios.values()) for one in own if one.tokens == trained
        }
        lengths = [one.tokens for one in passes]
        best = next(one.library for one in passes if one.tokens == trained)
        seconds = {
            label: [one.row.seconds[who] for one in passes]
            for label, who in (("ours", "everyformer"), ("theirs", best))
        }
        exponents = {
            f"exponent, {label}": exponent(lengths, values) if len(values) > 1 else math.nan
            for label, values in seconds.items()
        }
        kept = {"library": best, **ratios, f"within {FACTOR}": max(ratios.values()) <= FACTOR, **exponents}
        rows.append({"mixer": name, "causal": causal, "tokens": trained, **kept})
    return rows


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} tokens, two rounds")
    parser.add_argument("--rounds", type=int, help="7 unless told")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens; the step is trained at the second")
    parser.add_argument("--only", nargs="*", default=[], help="names of mixers")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    told = parser.parse_args()
    lengths = tuple(sorted(told.lengths or (QUICK if told.quick else LENGTHS)))
    trained = lengths[min(1, len(lengths) - 1)]
    torch.manual_seed(0)
    found = []
    missing: set[str] = set()
    for one in timed(lengths, trained, told.rounds or (2 if told.quick else 7), told.only, missing):
        found.append(one)
        print(one.row.name, {who: f"{ratio:.2f}" for who, ratio in one.row.ratios.items()}, flush=True)
    rows = summary(found, trained)
    for row in rows:
        print(*(f"{value:.2f}" if isinstance(value, float) else value for value in row.values()))
    print("Not installed, so left out:", *sorted(missing) or ["none"])
    alone = sorted(set(told.only or mixers.cards()) - {row["mixer"] for row in rows})
    content = {
        "paper": "mixer_peers",
        **environment.describe("cpu"),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "mixers": rows,
        "not installed": sorted(missing),
        "without a library here": alone,
        "cases": [dataclasses.asdict(one.row) for one in found],
    }
    print(write_atomic(told.out / "mixer_peers.json", json.dumps(content, indent=1) + "\n"))


if __name__ == "__main__":
    main()
