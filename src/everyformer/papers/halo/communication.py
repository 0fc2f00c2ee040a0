"""What sharded training sends: the small LLaMA over gloo processes, with and without rounded weights."""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from everyformer.catalog import Scale
from everyformer.lab import text
from everyformer.papers.halo.method import convert, gather_rounded

COLLECTIVES = {"_allgather_base_": "gathered", "_reduce_scatter_base_": "scattered", "allreduce_": "reduced"}


class Communicated(TorchDispatchMode):
    """Counts, while it is entered, the bytes of collectives in ``bytes``: of the whole tensor gathered or scattered."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = COLLECTIVES.get(func.__name__.split(".")[0]) if func.namespace == "c10d" else None
        if name is not None:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.bytes[name] += max(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


def shard(model: nn.Module, rounded: bool) -> nn.Module:
    """Each block of a LLaMA by itself, then what is left; baseline weights are gathered in bf16, as in the paper."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    if rounded:
        gather_rounded(convert(model, level=2, format="int8"))
    for block in model.model.layers:  # type: ignore[operator,union-attr]
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return model


def measure(world: int, scale: Scale, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Bytes of a step, by kind, and the mean loss of the last step, of ``bf16`` and ``HQ-FSDP`` over ``world`` processes."""
    text.pretrained("llama", scale=scale, seed=seed)  # so that no two processes pretrain at once
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_work, (world, port, scale, seed, steps, results), nprocs=world)
    return results.get()  # type: ignore[no-any-return]


def _work(rank: int, world: int, port: int, scale: Scale, seed: int, steps: int, results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = {name: _train(rank, world, scale, seed, steps, name == "HQ-FSDP") for name in ("bf16", "HQ-FSDP")}
    if rank == 0:
        results.put(found)
    dist.barrier()  # a process that leaves early would break the connections of the others
    dist.destroy_process_group()


def _train(rank: int, world: int, scale: Scale, seed: int, steps: int, rounded: bool) -> dict[str, float]:
    model = shard(text.pretrained("llama", scale=scale, seed=seed), rounded)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    train = text.corpus("made_up" if scale == "smoke" else "wikitext2").train
    for pieces in text.windows(train, batch=4 * world, seed=seed, count=steps):
        optimizer.zero_grad()
        with Communicated() as sent:
            loss = text.loss(model, pieces[rank::world])
            loss.backward()
        optimizer.step()
    total = loss.detach()
    dist.all_reduce(total)
    return {**{name: float(count) for name, count in sent.bytes.items()}, "loss": float(total) / world}
