"""Is it the same algorithm? Sensitivities, interpolation and iteration of two models (arXiv 2212.07677, section 3)."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.icl_gd.model import InContextTransformer


def sensitivity(
    model: nn.Module, tokens: Float[Tensor, "batch tokens dim"], outputs: int = 1
) -> tuple[Float[Tensor, "batch outputs"], Float[Tensor, "batch outputs dim_x"]]:
    """Predictions, and their derivatives with respect to the x channels of the query."""
    with torch.enable_grad():
        query = tokens[:, -1:].detach().clone().requires_grad_()
        found = model(torch.cat([tokens[:, :-1], query], dim=1))
        # A prediction depends on its own task alone, so the gradient of a sum over tasks holds each task's own.
        grads = [
            torch.autograd.grad(found[:, o].sum(), query, retain_graph=True, materialize_grads=True)[0]
            for o in range(outputs)
        ]
    return found.detach(), torch.cat(grads, dim=1)[..., :-outputs]


def alignment(
    model_a: nn.Module, model_b: nn.Module, tokens: Float[Tensor, "batch tokens dim"], outputs: int = 1
) -> dict[str, float]:
    """How alike two models predict: mean ``prediction_difference``, ``sensitivity_difference`` (L2) and their ``cosine``.

    A model maps tokens to predictions (batch, outputs). Sensitivities are those of :func:`sensitivity`.

    Raises:
        ValueError: tokens that are not finite.
    """
    if not tokens.isfinite().all():
        raise ValueError("tokens must be finite, got NaN or infinity")
    (f, df), (g, dg) = sensitivity(model_a, tokens, outputs), sensitivity(model_b, tokens, outputs)
    scale = (df.norm(dim=-1) + 1e-8) * (dg.norm(dim=-1) + 1e-8)
    return {
        "prediction_difference": float((f - g).norm(dim=-1).mean()),
        "sensitivity_difference": float((df - dg).norm(dim=-1).mean()),
        "cosine": float(((df * dg).sum(dim=-1) / scale).mean()),
    }


def normalised(model: InContextTransformer) -> tuple[Float[Tensor, "dim dim"], Float[Tensor, "dim dim"]]:
    """KQ / m and VP * m, with m the mean of KQ's diagonal over the x channels: the scale that only their product fixes.

    Raises:
        ValueError: a model that KQ and VP do not describe: several heads, softmax, untied layers, norms, biases, an MLP.
    """
    layer = model.layer()
    unfit = {
        "one head": layer.heads != 1,
        "linear attention": layer.softmax,
        "tied layers": len(model.attention) > 1,
        "no norms": any(isinstance(module, nn.LayerNorm) for module in model.modules()),
        "no biases": layer.bias,
        "no MLP": model.mlp is not None,
        "no embedding or positions": model.embed is not None or model.positions > 0,
    }
    wrong = [name for name, failed in unfit.items() if failed]
    if wrong:
        raise ValueError(f"model must have {', '.join(wrong)}")
    kq, vp = (part[0].detach() for part in layer.merged())
    scale = kq.diagonal()[: -model.outputs].mean()
    if scale == 0:
        raise ValueError("model must have query and key weights with a mean diagonal other than 0")
    return kq / scale, vp * scale


def interpolate(
    model: InContextTransformer, reference: InContextTransformer, weight: float = 0.5
) -> InContextTransformer:
    """A model whose KQ and VP are ``1 - weight`` times those of ``model`` plus ``weight`` times the reference's.

    Both are brought to the same scale first (see :func:`normalised`).

    Raises:
        ValueError: as :func:`normalised`; or models of different shapes.
    """
    if (model.dim, model.layers, model.outputs) != (reference.dim, reference.layers, reference.outputs):
        raise ValueError("reference must have the dim, layers and outputs of model")
    (kq, vp), (kq_other, vp_other) = normalised(model), normalised(reference)
    mixed = InContextTransformer(
        model.dim, model.layers, outputs=model.outputs, dampening=model.dampening, clip=model.clip, y_only=model.y_only,
        exclude_query=model.layer().exclude_query, window=model.layer().window,
    ).to(kq)  # fmt: skip
    with torch.no_grad():
        layer = mixed.layer()
        layer.query[0].copy_(torch.lerp(kq, kq_other, weight))
        layer.value[0].copy_(torch.lerp(vp, vp_other, weight))
        for identity in (layer.key, layer.out):
            identity[0].copy_(torch.eye(model.dim))
    return mixed


def iterated(model: InContextTransformer, steps: int, dampening: float = 0.75) -> InContextTransformer:
    """The model's one layer used ``steps`` times, dampened, changing y channels alone.

    Raises:
        ValueError: a model of untied layers, or steps below 1.
    """
    if not model.tied or steps < 1:
        raise ValueError(f"model must be tied and steps at least 1, got tied={model.tied} and steps={steps}")
    longer = copy.deepcopy(model)
    longer.layers, longer.dampening, longer.y_only = steps, dampening, True
    return longer


def copying(model: InContextTransformer, tokens: Float[Tensor, "batch tokens dim"]) -> dict[str, float]:
    """What the first layer's output at a token depends on: norms of its mean derivative by ``own``, ``next``, ``other``.

    ``tokens`` are those of :func:`~.data.token_sequence`. A layer that gathers each x with the y behind it, as an
    induction head does, depends on its next token as much as on its own; ``other`` is the mean over all other tokens.
    """
    given = tokens.detach().clone().requires_grad_()
    first, _ = next(model.trace(given))
    count = tokens.shape[1]
    norms = torch.stack([
        torch.autograd.grad(first[:, k].sum(), given, retain_graph=True)[0].mean(0).norm(dim=-1)
        for k in range(count - 2)
    ])  # fmt: skip
    own, following = norms.diagonal(), norms.diagonal(1)
    other = (norms.sum(1) - own - following) / (count - 2)
    return {"own": float(own.mean()), "next": float(following.mean()), "other": float(other.mean())}
