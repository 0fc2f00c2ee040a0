"""Speed of SLA beside full attention and beside FlexAttention with the same block mask, at 8,192 tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.lab.measure import forward_pass
from everyformer.ops.sparse_linear_attention.blocks import classify
from everyformer.papers.sla.claim import HEAD_DIM, HEADS, forward, training
from everyformer.papers.sla.layer import SparseLinearAttention
from everyformer.parts.video_dit import VideoDiT

BLOCK = 64


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Forward, forward and backward, and forward in bf16; FlexAttention computes the sparse branch alone."""
    tokens = 2048 if quick else 8192
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        tensors = [torch.randn(1, HEADS, tokens, HEAD_DIM, device=device, dtype=dtype) for _ in range(3)]
        layer = SparseLinearAttention(HEAD_DIM).to(device, dtype)
        peers = {"scaled_dot_product_attention": forward(F.scaled_dot_product_attention, tensors)}
        note = "95% sparsity, 8 heads of 64"
        if dtype is torch.float32:
            flexible = forward(flex(tensors, layer), tensors)
            began = time.perf_counter()
            flexible()
            peers["compiled FlexAttention, same critical blocks"] = flexible
            note += (
                f"; FlexAttention does the sparse branch alone, after {time.perf_counter() - began:.0f} s of compiling"
            )
        yield Case(f"forward, {tokens} tokens, {name}", forward(layer, tensors), peers, 8.0, note)
        yield Case(
            f"forward and backward, {tokens} tokens, {name}",
            training(layer, tensors),
            {"scaled_dot_product_attention": training(F.scaled_dot_product_attention, tensors)},
            4.0,
            "95% sparsity, 8 heads of 64",
        )
    yield video_model(2 if quick else 8, device)


def video_model(frames: int, device: str) -> Case:
    """A whole video DiT, a token per pixel of 32 x 32: what is left of the speed-up beside projections and MLPs."""
    video, times = torch.randn(1, frames, 1, 32, 32, device=device), torch.full((1,), 500.0, device=device)
    models = {
        name: VideoDiT(patch=1, channels=1, dim=256, depth=2, heads=4, attention=attention).to(device).eval()
        for name, attention in (("SLA", SparseLinearAttention), ("full", None))
    }
    run = {name: forward_pass(model, video, times) for name, model in models.items()}
    return Case(
        f"video DiT, {1024 * frames} tokens, forward",
        run["SLA"],
        {"the same with full attention": run["full"]},
        None,
        "2 blocks of width 256, 4 heads of 64, float32; 95% sparsity",
    )


def flex(tensors: list[Tensor], layer: SparseLinearAttention) -> Callable[..., Tensor]:
    """FlexAttention compiled for the critical blocks of these very queries and keys."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    query, key = (tensor.flatten(0, 1) for tensor in tensors[:2])
    top, _ = classify(query, key, layer.critical, layer.negligible, BLOCK)
    counts = torch.full((1, *top.shape[:2]), top.shape[-1], dtype=torch.int32, device=top.device)
    blocks = key.shape[1] // BLOCK
    listed = torch.zeros(1, *top.shape[:2], blocks, dtype=torch.int32, device=top.device)
    listed[..., : top.shape[-1]] = top.sort(-1).values.to(torch.int32)
    mask = BlockMask.from_kv_blocks(counts, listed, BLOCK_SIZE=BLOCK)
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)  # type: ignore[no-any-return]
