"""Text as bytes, and small language models of known architectures that are pretrained once and kept for all claims."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from everyformer.catalog import Scale
from everyformer.lab import data, train
from everyformer.lab.pretrained import load_or_train

Kind = Literal["gpt", "llama"]
BYTES = 256  # size of the vocabulary
LENGTH = 128  # tokens a small model is trained on at a time


@dataclasses.dataclass(frozen=True)
class Text:
    """Bytes (time,) to train on and to test on."""

    train: Int[Tensor, " time"]
    test: Int[Tensor, " time"]


def corpus(name: Literal["tiny_shakespeare", "wikitext2", "made_up"]) -> Text:
    """Plays (the last tenth is the test), WikiText-2 (its validation text to train on), or made-up sentences.

    The made-up ones need no file: words of a small seeded grammar, for tests and smoke runs.
    """
    if name == "wikitext2":
        return Text(*(_bytes(data.text("wikitext2", part)) for part in (0, 1)))
    whole = _bytes(data.text("tiny_shakespeare")) if name == "tiny_shakespeare" else _made_up()
    cut = len(whole) * 9 // 10
    return Text(whole[:cut], whole[cut:])


def _bytes(text: str) -> Int[Tensor, " time"]:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def _made_up() -> Int[Tensor, " time"]:
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "tis", "nobler", "in", "mind"]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(words), (8_000,), generator=generator)
    return _bytes(" ".join(words[index] for index in chosen.tolist()))


def windows(
    text: Int[Tensor, " time"], *, length: int = LENGTH, batch: int = 16, seed: int = 0, count: int = 100
) -> Iterator[Int[Tensor, "batch length+1"]]:
    """``count`` batches of pieces from random places, each a byte longer than the model reads.

    Raises:
        ValueError: the text is not longer than ``length``.
    """
    if len(text) <= length:
        raise ValueError(f"text must be longer than length {length}, got {len(text)} bytes")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        start = torch.randint(len(text) - length, (batch, 1), generator=generator)
        yield text[start + torch.arange(length + 1)]


def loss(model: nn.Module, pieces: Int[Tensor, "batch length+1"]) -> Tensor:
    """Mean cross entropy, in nats, of each next byte. The model returns logits, or an output that has ``logits``."""
    output = model(pieces[:, :-1])
    logits = getattr(output, "logits", output)
    return F.cross_entropy(logits.flatten(0, 1).float(), pieces[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Int[Tensor, " time"], *, length: int = LENGTH, pieces: int = 256) -> float:
    """The loss over the first ``pieces`` pieces of a text, one after the other, in evaluation mode."""
    training = model.training
    model.eval()
    whole = text.unfold(0, length + 1, length)[:pieces]
    device = next(model.parameters()).device
    total = sum(float(loss(model, part.to(device))) * len(part) for part in torch.split(whole, 32))
    model.train(training)
    return total / len(whole)


def build(kind: Kind, *, width: int = 128, layers: int = 4, heads: int = 4, length: int = LENGTH) -> nn.Module:
    """A language model of bytes by transformers' GPT-2 or LLaMA, from the current random state."""
    import transformers

    if kind == "gpt":
        gpt = transformers.GPT2Config(
            vocab_size=BYTES, n_embd=width, n_layer=layers, n_head=heads, n_positions=length,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(gpt)
    if kind == "llama":
        llama = transformers.LlamaConfig(
            vocab_size=BYTES, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=length, use_cache=False,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(llama)
    raise ValueError(f"kind must be gpt or llama, got {kind!r}")


def fit(
    model: nn.Module,
    text: Int[Tensor, " time"],
    *,
    steps: int,
    folder: Path,
    seed: int,
    batch: int = 16,
    learning_rate: float = 1e-3,
    step: Callable[[nn.Module, Tensor], Tensor] = loss,
    label: str = "",
    device: str = "cpu",
    precision: str = "32-true",
) -> train.History:
    """The one recipe of small language models: AdamW, at the pace of :func:`train.warmed`."""
    return train.fit(
        model,
        step,
        lambda epoch: windows(text, batch=batch, seed=1_000_003 * seed + epoch),
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1
        ),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, train.warmed(steps)),
        schedule_every="step",
        steps=steps,
        folder=folder,
        seed=seed,
        device=device,
        precision=precision,
        label=label,
    )


def pretrained(kind: Kind, *, scale: Scale, seed: int) -> nn.Module:
    """A small model trained on plays (``smoke``: a tiny one on made-up sentences), from the cache where it is there.

    The cache is keyed by a hash of architecture, recipe, text, seed and versions; it lies beside the downloaded data.
    """
    smoke = scale == "smoke"
    shape = {"width": 32, "layers": 2, "heads": 2} if smoke else {"width": 128, "layers": 4, "heads": 4}
    steps = 20 if smoke else 600
    text = corpus("made_up" if smoke else "tiny_shakespeare").train
    torch.manual_seed(seed)
    model = build(kind, **shape)
    load_or_train(
        model,
        lambda folder: fit(model, text, steps=steps, folder=folder, seed=seed, label=f"pretraining of a small {kind}"),
        recipe={"kind": kind, **shape, "steps": steps, "seed": seed}, samples=[text], code=[sys.modules[__name__]],
    )  # fmt: skip
    return model
