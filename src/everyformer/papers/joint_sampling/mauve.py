"""How near two sets of texts are: the area under their divergence frontier (MAUVE, arXiv 2102.01454)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHARPNESS = 5.0  # c of the paper's equation 2
POINTS = 25  # mixtures on the frontier


def mauve(
    ours: Float[Tensor, "samples features"], theirs: Float[Tensor, "others features"], *, clusters: int, seed: int
) -> float:
    """1 for equal distributions, near 0 for disjoint ones; features are clustered together and counted.

    The figure means something only beside others of the same feature model and the same numbers of samples.

    Raises:
        ValueError: features that differ in number, or fewer samples than clusters.
    """
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"ours and theirs must have equal features, got {ours.shape[1]} and {theirs.shape[1]}")
    if not 2 <= clusters <= len(ours) + len(theirs):
        raise ValueError(f"clusters must be from 2 to the {len(ours) + len(theirs)} samples, got {clusters}")
    labels = k_means(torch.cat([ours, theirs]), clusters, seed)
    p, q = (part.bincount(minlength=clusters).double() / len(part) for part in labels.split([len(ours), len(theirs)]))
    return frontier_area(p, q)


def frontier_area(p: Float[Tensor, " bins"], q: Float[Tensor, " bins"]) -> float:
    """Area under the curve of (exp(-c KL(q | r)), exp(-c KL(p | r))) over mixtures r of p and q."""
    share = torch.linspace(1e-6, 1 - 1e-6, POINTS, dtype=p.dtype)[:, None]
    mixed = share * p + (1 - share) * q
    x, y = ((-SHARPNESS * _divergence(part, mixed)).exp() for part in (q, p))
    one, zero = x.new_ones(1), x.new_zeros(1)
    # The ends of the curve: (1, 0) where r is q, (0, 1) where r is p.
    x, y = torch.cat([one, x, zero]), torch.cat([zero, y, one])
    return float(-torch.trapezoid(y, x))


def _divergence(p: Float[Tensor, " bins"], r: Float[Tensor, "points bins"]) -> Float[Tensor, " points"]:
    return (torch.xlogy(p, p) - torch.where(p > 0, p * r.clamp(min=1e-300).log(), 0.0)).sum(-1)


def k_means(
    x: Float[Tensor, "samples features"], clusters: int, seed: int, rounds: int = 50
) -> Int[Tensor, " samples"]:
    """The cluster of each sample; the first centres are drawn far apart (k-means++)."""
    generator = torch.Generator().manual_seed(seed)
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    for _ in range(clusters - 1):
        far = torch.cdist(x, centres).amin(1).square().cpu() + 1e-12
        centres = torch.cat([centres, x[torch.multinomial(far, 1, generator=generator).to(x.device)]])
    labels = torch.cdist(x, centres).argmin(1)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add(0, labels, x)
        counts = labels.bincount(minlength=clusters)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        before, labels = labels, torch.cdist(x, centres).argmin(1)
        if torch.equal(before, labels):
            break
    return labels
