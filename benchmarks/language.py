"""The small decoder of `everyformer.parts.language` beside transformers' LLaMA of the same shape.

`python benchmarks/language.py` times a training step, eager and compiled, and generation with a cache, and writes
`language.json` here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from everyformer.lab.bench import Case, record, run_cases
from everyformer.parts.language import LanguageModel

SHAPES = {  # vocabulary, dim, depth, heads, hidden; rows and tokens of a batch
    "4 layers of 128": ((256, 128, 4, 4, 384), (16, 128)),
    "6 layers of 384": ((4096, 384, 6, 6, 1024), (4, 256)),
}
PROMPT, WRITTEN = 16, 96  # tokens


def cases() -> Iterator[Case]:
    """A step and a generation at each shape."""
    for name, ((vocabulary, dim, depth, heads, hidden), batch) in SHAPES.items():
        torch.manual_seed(0)
        ours = LanguageModel(vocabulary=vocabulary, dim=dim, depth=depth, heads=heads, hidden=hidden, tied=False)
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=depth,
            num_attention_heads=heads, bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        theirs: Any = transformers.LlamaForCausalLM(config)
        tokens = torch.randint(vocabulary, batch)
        for kind in ("eager", "compiled"):
            pair = [torch.compile(model) if kind == "compiled" else model for model in (ours, theirs)]
            yield Case(
                f"training step, {name}, {kind}", step(pair[0], ours, tokens),
                {f"transformers' LLaMA, {kind}": step(pair[1], theirs, tokens)}, target=1.0,
            )  # fmt: skip
        prompt = tokens[:4, :PROMPT]
        yield Case(
            f"generation with a cache, {name}", generation(ours, prompt), {"transformers' LLaMA": written(theirs, prompt)},
            target=1.0, note=f"{len(prompt)} rows, {PROMPT} tokens given and {WRITTEN} written, the likeliest",
        )  # fmt: skip


def step(run: Any, model: nn.Module, tokens: Tensor) -> Callable[[], object]:
    """A forward and a backward pass of next-token training."""

    def once() -> None:
        output = run(tokens[:, :-1])
        logits = getattr(output, "logits", output)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.grad(loss, list(model.parameters()))

    return once


def generation(model: LanguageModel, prompt: Tensor) -> Callable[[], object]:
    """Our generation."""
    return lambda: model.generate(prompt, WRITTEN, temperature=0)


def written(model: Any, prompt: Tensor) -> Callable[[], object]:
    """Theirs, with the cache that `generate` takes by itself."""
    options = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False}
    return lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    rows = run_cases(cases(), arguments.rounds, "cpu", report=lambda row: print(row.name, row.ratios))
    print(record("language", rows, "cpu", arguments.out))
