"""Sampling a DiT of 1,024 tokens region-adaptively beside dense sampling."""

from __future__ import annotations

from collections.abc import Iterator

from everyformer.lab.bench import Case
from everyformer.papers.ras.claim import DENSE_STEPS, DIT_SIZES, TOKEN_STEPS, dit_candidates

SIZES = {"4 blocks of width 128": DIT_SIZES["cpu"], "4 blocks of width 384": {"dim": 384, "depth": 4, "heads": 6}}


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Ratios 0.5 and 0.25 of a small and of a wider DiT; the target is 0.85 of what the tokens allow."""
    steps = 8 if quick else TOKEN_STEPS
    for size, shape in ({"smoke": DIT_SIZES["smoke"]} if quick else SIZES).items():
        candidates, bounds = dit_candidates(shape, steps, 0, device)
        for name, bound in bounds.items():
            yield Case(
                f"{size}, {steps} steps, {name}",
                candidates[name],
                {"dense": candidates["dense"]},
                0.85 * bound,
                f"the first {DENSE_STEPS} steps are dense, so the tokens allow {bound:.2f}x",
            )
