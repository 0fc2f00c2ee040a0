"""Writing with a base of twelve layers: four tokens per full pass with the sampler, beside the base alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.papers.joint_sampling.generation import generate
from everyformer.papers.joint_sampling.model import JointSampler, MaskedDiffusionLM


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Float32, random weights; ``quick`` takes a narrow base and short sequences."""
    width, length, batch = (32, 16, 2) if quick else (256, 64, 4)
    base = MaskedDiffusionLM(
        vocabulary=4096, dim=width, depth=12, heads=width // 32, mask_token=4095, longest=length
    ).to(device)  # fmt: skip
    sampler = JointSampler.from_base(base)

    def writing(tokens_per_pass: int, added: bool, order: str) -> Callable[[], Tensor]:
        return lambda: generate(
            base, sampler if added else None, length=length, batch=batch, tokens_per_pass=tokens_per_pass, order=order  # type: ignore[arg-type]
        ).sequences  # fmt: skip

    for order in ("random", "confidence"):
        peers = {"one token per pass": writing(1, False, order), "marginal sampling, 4": writing(4, False, order)}
        note = f"12 layers, width {width}, batch {batch}, {length} tokens, {order} order, float32"
        yield Case(f"4 tokens per pass, {order} order", writing(4, True, order), peers, 2.0, note)
