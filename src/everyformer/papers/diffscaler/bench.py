"""A training step of Diffscaler beside full fine-tuning and LoRA, and a batch of four tasks beside four batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.lab.measure import peak_extra_bytes
from everyformer.papers.diffscaler.claim import RANKS, many_tasks
from everyformer.papers.diffscaler.quality import BITFIT, DIFFSCALER, FULL, LORA, tuned
from everyformer.parts.diffusion import flow_matching_loss
from everyformer.parts.dit import DiT


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Float32, 256 tokens of a DiT-S/2's width; ``quick`` takes two blocks and few images."""
    depth, batch = (2, 4) if quick else (12, 16)
    network = DiT(depth=depth, classes=10)
    steps = {
        method: training_step(tuned(method, network).to(device), batch) for method in (DIFFSCALER, FULL, LORA, BITFIT)
    }
    memory = {method: peak_extra_bytes(step, device) / 2**20 for method, step in steps.items()}
    note = f"DiT-S/2 of {depth} blocks, batch {batch}, Adam; MiB of a step beside the weights: "
    yield Case(
        "training step",
        steps[DIFFSCALER],
        {method: steps[method] for method in (FULL, LORA, BITFIT)},
        1.0,
        note + ", ".join(f"{method} {size:.0f}" for method, size in memory.items()),
    )
    model, inputs = many_tasks(network, batch)
    model, inputs = model.to(device), [tensor.to(device) for tensor in inputs]
    names = [list(RANKS)[row % len(RANKS)] for row in range(batch)]

    @torch.no_grad()
    def mixed() -> Tensor:
        return model(*inputs, adapter_names=names)  # type: ignore[no-any-return]

    @torch.no_grad()
    def apart() -> list[Tensor]:
        outputs = []
        for index, task in enumerate(RANKS):
            model.set_adapter(task)
            outputs.append(model(*(tensor[index :: len(RANKS)] for tensor in inputs)))
        return outputs

    yield Case("batch of four tasks", mixed, {"four batches of one task": apart}, 1.0, f"{depth} blocks, batch {batch}")


def training_step(model: nn.Module, batch: int) -> Callable[[], None]:
    """A function that takes one step of Adam; the first call makes the optimiser's state."""
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    images, noise = torch.randn(2, batch, 4, 32, 32, device=device)
    labels, sigmas = torch.arange(batch, device=device) % 10, torch.rand(batch, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        flow_matching_loss(model, images, labels, noise=noise, sigmas=sigmas).backward()
        optimizer.step()

    return step
