"""Speed of PASTA: acting with kept keys and values, and training beside transformers' GPT-2 of the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from everyformer.lab.bench import Case
from everyformer.papers.pasta.acting import Actor
from everyformer.papers.pasta.model import SIZES, Pasta
from everyformer.papers.pasta.objectives import Windows, pretraining_loss
from everyformer.papers.pasta.tokenizer import ComponentTokenizer

SENSORS, ACTUATORS = 17, 6  # HalfCheetah's


def agent() -> Pasta:
    """C-GPT of the size that a CPU trains."""
    from gymnasium.spaces import Box

    spaces = Box(-10.0, 10.0, (SENSORS,)), Box(-1.0, 1.0, (ACTUATORS,))
    return Pasta(ComponentTokenizer(*spaces), size="cpu", objective="c-gpt", dropout=0.0)


def acting(actor: Actor, states: torch.Tensor) -> Callable[[], object]:
    """An episode of these states, one robot."""

    def run() -> object:
        actor.reset()
        return [actor.act(state[None]) for state in states]

    return run


def gpt2(model: Pasta) -> Any:
    """transformers' GPT-2 with as many layers, as wide, with as many tokens and as long a context."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = SIZES["cpu"]
    config: Any = GPT2Config(  # type: ignore[call-arg]
        vocab_size=model.bins.num_embeddings, n_positions=size.tokens, n_embd=size.dim, n_layer=size.layers,
        n_head=size.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def cases(quick: bool, device: str) -> Iterator[Case]:
    """An episode on HalfCheetah, and one training step on windows of 6 steps; ``quick`` takes fewer of both."""
    steps, batch = (8, 2) if quick else (60, 16)
    with torch.device(device):
        model, states = agent(), torch.randn(steps, SENSORS)
    note = f"HalfCheetah's 17 + 6 tokens a step, {steps} steps, window of {model.context} steps, one robot, float32"
    yield Case(
        "acting",
        acting(Actor(model), states),
        {"window read again for every token": acting(Actor(model, cached=False), states)},
        2.0,
        note,
    )
    with torch.device(device):
        peer = gpt2(model)
        windows = Windows(torch.randn(batch, model.context, SENSORS), torch.rand(batch, model.context, ACTUATORS))
        ids = torch.randint(model.bins.num_embeddings, (batch, model.context * (SENSORS + ACTUATORS)))
    trained = agent().to(device).train()
    generator = torch.Generator()

    def ours() -> object:
        return torch.autograd.grad(
            pretraining_loss(trained, windows, generator), list(trained.parameters()), allow_unused=True
        )

    def theirs() -> object:
        return torch.autograd.grad(peer(input_ids=ids, labels=ids).loss, list(peer.parameters()))

    note = f"loss and gradients of {batch} windows of {model.context} steps, 1024 bins, float32, no dropout"
    yield Case("training step", ours, {"transformers' GPT-2": theirs}, 1.0, note)
