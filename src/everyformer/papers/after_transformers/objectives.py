"""Two objectives beside back-propagated likelihood: forward-forward training and contrast."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class ForwardForward(nn.Module):
    """A classifier whose layers learn by themselves (arXiv 2212.13345): no gradient passes from one to the next.

    The label is part of the input. Each layer makes its mean squared activity, the *goodness*, larger than
    ``threshold`` where the label is right and smaller where it is wrong. The class is the label with the most goodness.

    Args:
        inputs: width of what is classified.
        widths: of the layers.
        classes: number of labels.

    Raises:
        ValueError: no layers, or fewer than two classes.
    """

    def __init__(self, inputs: int, widths: Sequence[int], classes: int, *, threshold: float = 1.0) -> None:
        super().__init__()
        if not widths or classes < 2:
            raise ValueError(f"widths must name a layer and classes be at least 2, got {tuple(widths)} and {classes}")
        self.classes, self.threshold = classes, threshold
        sizes = [inputs + classes, *widths]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))

    def goodness(
        self, x: Float[Tensor, "batch inputs"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch layers"]:
        """Mean squared activity of each layer; its gradient reaches that layer's own weights alone."""
        x = torch.cat([x, F.one_hot(labels, self.classes).to(x.dtype)], dim=1)
        found = []
        for layer in self.layers:
            # Its length is what the layer before was rewarded for: only the direction goes on.
            active = F.relu(layer(F.rms_norm(x, x.shape[1:]).detach()))
            found.append(active.square().mean(1))
            x = active
        return torch.stack(found, dim=1)

    def loss(self, x: Float[Tensor, "batch inputs"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Right labels against wrong ones drawn at random, summed over layers."""
        wrong = (labels + torch.randint_like(labels, 1, self.classes)) % self.classes
        right, other = self.goodness(x, labels), self.goodness(x, wrong)
        return (F.softplus(self.threshold - right) + F.softplus(other - self.threshold)).mean(0).sum()

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch classes"]:
        """Goodness of every label, summed over layers."""
        tried = [torch.full((len(x),), label, device=x.device) for label in range(self.classes)]
        return torch.stack([self.goodness(x, label).sum(1) for label in tried], dim=1)


def info_nce(
    one: Float[Tensor, "batch dim"], other: Float[Tensor, "batch dim"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """The contrastive loss (arXiv 1807.03748): each row of ``one`` has to tell its partner from the rest of the batch.

    Raises:
        ValueError: different shapes, or a temperature that is not positive.
    """
    if one.shape != other.shape:
        raise ValueError(f"one and other must have the same shape, got {tuple(one.shape)} and {tuple(other.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    scores = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(one), device=one.device))
