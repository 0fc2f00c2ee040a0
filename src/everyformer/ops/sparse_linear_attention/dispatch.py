"""The operator: checks, padding, choice of backend, and what autograd and torch.compile need to know of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from everyformer.ops.sparse_linear_attention import reference
from everyformer.ops.sparse_linear_attention import torch as plain
from everyformer.ops.sparse_linear_attention.blocks import classify

FEATURE_MAPS = ("softmax", "elu", "relu")


def sparse_linear_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
    *,
    critical: float = 0.05,
    negligible: float = 0.10,
    block: int = 64,
    feature_map: str = "softmax",
    linear_over: str = "marginal",
    backend: str | None = None,
) -> tuple[Float[Tensor, "batch heads tokens dim"], Float[Tensor, "batch heads tokens dim"]]:
    """The outputs of the sparse and of the linear branch; memory grows with tokens, not with their square.

    Args:
        critical: fraction of key blocks, rounded down but at least one, that each query block attends to exactly; 0
            leaves the sparse branch out.
        negligible: fraction of key blocks that each query block ignores.
        block: tokens in a block; lengths need not be multiples of it.
        feature_map: ``"softmax"`` (over features), ``"elu"`` (+ 1) or ``"relu"``.
        linear_over: ``"marginal"``, the blocks that are neither critical nor negligible (the paper), or ``"all"``.
        backend: ``"reference"``, ``"torch"`` or ``"triton"``; by default triton on CUDA and torch elsewhere.

    Raises:
        ValueError: an unknown name or shapes that do not go together.
    """
    backend = backend or ("triton" if query.is_cuda else "torch")
    if backend not in ("reference", "torch", "triton"):
        raise ValueError(f"backend must be reference, torch or triton, got {backend!r}")
    _check(query, key, value, feature_map, linear_over)
    if backend == "reference":
        return reference.sparse_linear_attention(
            query, key, value, critical=critical, negligible=negligible, block=block, feature_map=feature_map,
            linear_over=linear_over,
        )  # fmt: skip
    sparse, linear, _ = _attend(
        *_blocks(query, key, value, critical, negligible, block), linear_over == "all", feature_map, backend == "triton"
    )
    tokens = query.shape[2]
    return sparse[:, :tokens].view_as(query), linear[:, :tokens].view_as(query)


def projected(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
    weight: Float[Tensor, "dim dim"],
    bias: Float[Tensor, "dim"],
    *,
    critical: float = 0.05,
    negligible: float = 0.10,
    block: int = 64,
    feature_map: str = "softmax",
    linear_over: str = "marginal",
) -> Float[Tensor, "batch heads tokens dim"]:
    """Sparse branch + linear branch times ``weight`` transposed + ``bias`` (arXiv 2509.24006, equation 7).

    Other arguments and errors as in :func:`sparse_linear_attention`.
    """
    if torch.is_grad_enabled() or query.is_cuda:
        sparse, linear = sparse_linear_attention(
            query, key, value, critical=critical, negligible=negligible, block=block, feature_map=feature_map,
            linear_over=linear_over,
        )  # fmt: skip
        # One product that adds to the sparse branch, instead of a projection and a sum.
        return torch.addmm(sparse.flatten(0, 2), linear.flatten(0, 2), weight.t()).add_(bias).view_as(query)
    _check(query, key, value, feature_map, linear_over)
    out = _attend_projected(
        *_blocks(query, key, value, critical, negligible, block), linear_over == "all", feature_map, weight, bias
    )
    return out[:, : query.shape[2]].view_as(query)


def _check(query: Tensor, key: Tensor, value: Tensor, feature_map: str, linear_over: str) -> None:
    if query.ndim != 4 or key.shape != value.shape or key.shape[:2] != query.shape[:2]:
        raise ValueError(
            "query, key and value must be (batch, heads, tokens, dim) with key and value alike, got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key must have query's dim {query.shape[-1]}, got {key.shape[-1]}")
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map must be one of {', '.join(FEATURE_MAPS)}, got {feature_map!r}")
    if linear_over not in ("marginal", "all"):
        raise ValueError(f"linear_over must be 'marginal' or 'all', got {linear_over!r}")


def _blocks(
    query: Tensor, key: Tensor, value: Tensor, critical: float, negligible: float, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]:
    """What the operators take: whole blocks by head, the lists of blocks, the block size, the number of keys."""
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))
    top, bottom = classify(q.detach(), k.detach(), critical, negligible, block)
    return _whole(q, block), _whole(k, block), _whole(v, block), top, bottom, block, key.shape[2]


def _whole(x: Tensor, block: int) -> Tensor:
    """``x`` (heads, tokens, dim) padded with zeros to whole blocks, contiguous."""
    missing = -x.shape[1] % block
    return F.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()


# Custom operators, so that torch.compile takes them whole instead of unrolling the loop over heads and blocks.
@torch.library.custom_op("everyformer::sparse_linear_attention", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    critical: Tensor,
    negligible: Tensor,
    block: int,
    keys: int,
    everywhere: bool,
    feature_map: str,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    linear, exact = torch.empty_like(query), critical.shape[-1] > 0
    sparse = torch.empty_like(query) if exact else torch.zeros_like(query)
    logsumexp = query.new_empty(0, dtype=torch.float32)
    if triton and exact:
        sparse, logsumexp = _triton().sparse_forward(query, key, value, critical, block, keys)
    # Both branches of a head before the next one: its queries, keys and values are still in the cache.
    for head in range(len(query)):
        q, k, v, top, bottom, s, o = (
            x[head : head + 1] for x in (query, key, value, critical, negligible, sparse, linear)
        )
        if exact and not triton:
            plain.sparse_forward(q, k, v, top, s, block, keys)
        plain.linear_forward(q, k, v, top, bottom, o, block, keys, everywhere, feature_map)
    return sparse, linear, logsumexp


@_attend.register_fake
def _(query, key, value, critical, negligible, block, keys, everywhere, feature_map, triton):  # type: ignore[no-untyped-def]
    size = query.shape[0] * query.shape[1] if triton and critical.shape[-1] else 0
    return torch.empty_like(query), torch.empty_like(query), query.new_empty(size, dtype=torch.float32)


@torch.library.custom_op("everyformer::sparse_linear_attention_projected", mutates_args=())
def _attend_projected(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    critical: Tensor,
    negligible: Tensor,
    block: int,
    keys: int,
    everywhere: bool,
    feature_map: str,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Without gradients the linear branch is needed for a head at a time, and fresh memory for all would be slow."""
    out, linear, exact = torch.empty_like(query), torch.empty_like(query[:1]), critical.shape[-1] > 0
    for head in range(len(query)):
        q, k, v, top, bottom, o = (x[head : head + 1] for x in (query, key, value, critical, negligible, out))
        plain.linear_forward(q, k, v, top, bottom, linear, block, keys, everywhere, feature_map)
        if exact:
            plain.sparse_forward(q, k, v, top, o, block, keys)
            o[0].addmm_(linear[0], weight.t()).add_(bias)
        else:
            torch.addmm(bias, linear[0], weight.t(), out=o[0])
    return out


@_attend_projected.register_fake
def _(query, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(query)


@torch.library.custom_op("everyformer::sparse_linear_attention_backward", mutates_args=())
def _attend_backward(
    grad_sparse: Tensor,
    grad_linear: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    critical: Tensor,
    negligible: Tensor,
    sparse: Tensor,
    linear: Tensor,
    logsumexp: Tensor,
    block: int,
    keys: int,
    everywhere: bool,
    feature_map: str,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = plain.linear_backward(
        grad_linear.contiguous(), query, key, value, linear, critical, negligible, block, keys, everywhere, feature_map
    )
    if not critical.shape[-1]:
        return grads
    grad = grad_sparse.contiguous()
    if triton:
        exact = _triton().sparse_backward(grad, query, key, value, sparse, logsumexp, critical, block, keys)
    else:
        exact = plain.sparse_backward(grad, query, key, value, sparse, critical, block, keys)
    return grads[0].add_(exact[0]), grads[1].add_(exact[1]), grads[2].add_(exact[2])


@_attend_backward.register_fake
def _(grad_sparse, grad_linear, query, key, value, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.settings = inputs[5:]


def _differentiate(ctx, grad_sparse, grad_linear, _):  # type: ignore[no-untyped-def]
    return (*_attend_backward(grad_sparse, grad_linear, *ctx.saved_tensors, *ctx.settings), *[None] * 7)


_attend.register_autograd(_differentiate, setup_context=_keep)


def _triton():  # type: ignore[no-untyped-def]
    from everyformer.ops.sparse_linear_attention import triton

    return triton
