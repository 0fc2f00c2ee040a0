"""Sampling a DiT of 1,024 tokens region-adaptively beside dense sampling."""

from __future__ import annotations

from collections.abc import Iterator

from everyformer.lab.bench import Case
from everyformer.papers.ras.claim import DENSE_STEPS, DIT_SIZES, TOKEN_STEPS, dit_candidates


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Ratios 0.5 and 0.25; the target is 0.85 of what the tokens allow."""
    steps = 8 if quick else TOKEN_STEPS
    candidates, bounds = dit_candidates(DIT_SIZES["smoke" if quick else "cpu"], steps, 0, device)
    for name, bound in bounds.items():
        yield Case(
            f"{steps} steps, {name}",
            candidates[name],
            {"dense": candidates["dense"]},
            0.85 * bound,
            f"the first {DENSE_STEPS} steps are dense, so the tokens allow {bound:.2f}x",
        )
