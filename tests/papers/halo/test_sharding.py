"""HQ-FSDP with two and four gloo processes: this file, run as a script, is one of them."""

import copy
import os
import socket
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from everyformer.papers.halo import convert, gather_rounded

STEPS = 2


def build(level=1, format="int8"):
    torch.manual_seed(0)
    # 20 rows are uneven over 8, and a head stays as it is.
    body = nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16))
    model = nn.ModuleDict({"body": body, "lm_head": nn.Linear(16, 8)})
    return convert(model, level=level, format=format)


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def batch(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(6, 16, generator=generator)


def loss(model, x):
    return model["lm_head"](x + model["body"](x)).square().mean()


def alone(world, steps):
    """One process that takes the batches of all in turn."""
    model = build()
    optimizer = optimizer_of(model)
    for step in range(steps):
        optimizer.zero_grad()
        for rank in range(world):
            (loss(model, batch(step, rank)) / world).backward()
        optimizer.step()
    return model


def sharded():
    model = gather_rounded(build())
    for part in (model["body"][0], model["body"][2], model["lm_head"]):
        fully_shard(part, reshard_after_forward=True)
    return model


def train(model, optimizer, rank, steps):
    for step in steps:
        optimizer.zero_grad()
        loss(model, batch(step, rank)).backward()
        optimizer.step()


def whole(model):
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in
            model.state_dict().items()}  # fmt: skip


def spawn(world, work, folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, work, str(folder)], env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(world)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world


def two(rank, world, folder):
    """Two steps equal one process's; what is gathered is counted; the state is saved."""
    from everyformer.papers.halo.communication import Communicated

    model = sharded()
    optimizer = optimizer_of(model)
    with Communicated() as sent:
        loss(model, batch(0, rank)).backward()
    rounded, rest = 2 * 16 * 20, (20 + 16) + (8 * 16 + 8)  # elements of weights, and of biases and the head
    # Forward and backward: a byte for each weight, float32 for the rest, and one scale for each weight.
    assert sent.bytes == {
        "gathered": 2 * (rounded + 4 * rest), "reduced": 2 * 2 * 4, "scattered": 4 * (rounded + rest)
    }, sent.bytes  # fmt: skip
    train(model, optimizer, rank, range(STEPS))
    truth = alone(world, STEPS).state_dict()
    for name, value in whole(model).items():
        torch.testing.assert_close(value, truth[name], atol=1e-6, rtol=1e-5)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def four(rank, world, folder):
    """The state of two processes, resharded over four, goes on as one process does."""
    model = sharded()
    optimizer = optimizer_of(model)
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    single = alone(2, STEPS)
    for name, value in whole(model).items():
        torch.testing.assert_close(value, single.state_dict()[name], atol=1e-6, rtol=1e-5)
    train(model, optimizer, rank % 2, [STEPS])  # pairs of processes take the same batches as two did
    single = alone(2, STEPS + 1)
    for name, value in whole(model).items():
        torch.testing.assert_close(value, single.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_two_processes_equal_one_and_four_take_over(tmp_path):
    spawn(2, "two", tmp_path / "state")
    plain = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16)), "lm_head": nn.Linear(16, 8)}
    )
    state = {"model": plain.state_dict()}
    dcp.load(state, checkpoint_id=str(tmp_path / "state"))  # into a model that was never converted
    plain.load_state_dict(state["model"])
    truth = alone(2, STEPS).state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, truth[name], atol=1e-6, rtol=1e-5)
    spawn(4, "four", tmp_path / "state")


def test_before_it_is_sharded_a_prepared_model_is_the_same():
    plain, prepared = build(2), gather_rounded(build(2))
    x = batch(0, 0)
    for model in (plain, prepared):
        loss(model, x).backward()
    torch.testing.assert_close(prepared["body"][0].weight.grad, plain["body"][0].weight.grad)
    assert {type(value) for value in prepared.state_dict().values()} == {torch.Tensor}
    copy.deepcopy(plain).load_state_dict(prepared.state_dict())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="model must be converted first, got Linear"):
        gather_rounded(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model must not have been prepared before"):
        gather_rounded(gather_rounded(build()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    {"two": two, "four": four}[sys.argv[1]](dist.get_rank(), dist.get_world_size(), sys.argv[2])
    dist.barrier()  # a process that leaves early would break the connections of the others
    dist.destroy_process_group()
