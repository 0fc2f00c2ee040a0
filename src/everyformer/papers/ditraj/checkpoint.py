"""The authors' code runs diffusers' Wan transformer: its weights, and their boxes, masks and positions replayed on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.ditraj import method
from everyformer.papers.ditraj.boxes import Trajectory
from everyformer.papers.ditraj.control import TrajectoryControl
from everyformer.parts import checkpoints

TRIM = 1  # the authors' code leaves out the last row and the last column of a box


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Any:
    """diffusers' ``WanTransformer3DModel`` with these weights; ``config["model"]`` holds its arguments.

    Raises ``ValueError`` that names a key that is missing, unexpected or misshapen.
    """
    from diffusers import WanTransformer3DModel

    model: Any = WanTransformer3DModel(**config["model"])
    checkpoints.check(state, {name: tensor.shape for name, tensor in model.state_dict().items()})
    model.load_state_dict(dict(state))
    return model


def export(model: Any) -> dict[str, Tensor]:
    """The weights under the names they came with."""
    return dict(model.state_dict())


@torch.no_grad()
def replay(model: Any, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' run on the same boxes, latents and texts: path, masks, rotary tables, and the model's outputs.

    ``config["num_frames"]`` counts the video's frames.
    """
    keyframes: list[tuple[float, ...]] = [tuple(key) for key in inputs["keyframes"].tolist()]
    trajectory = Trajectory(keyframes, frames=config["num_frames"])
    latents, timestep = inputs["latents"], inputs["timestep"]
    frames, rows, columns = (
        size // patch for size, patch in zip(latents.shape[2:], model.config.patch_size, strict=True)
    )
    grid = frames, rows, columns
    boxes = trajectory.tokens(grid)
    inside = method.foreground(boxes, grid)
    words = inputs["text_base"].shape[1]
    allowed = method.self_mask(boxes, grid, "redundant", trim=TRIM)
    assert allowed is not None
    found = {
        "path": trajectory.path().float(),
        "box_mask": inside.reshape(grid).to(torch.uint8),
        "cross_attention_allowed": method.cross_mask(inside, words, words).to(torch.uint8),
        "self_attention_allowed": allowed.to(torch.uint8),
    }
    for name, table in zip(("cos", "sin"), model.rope(latents), strict=True):
        plain = table[0, :, 0, ::2]  # diffusers keeps every angle twice
        found[f"rope_plain_{name}"] = plain.reshape(*grid, -1)
        found[f"rope_std_{name}"] = method.std_rope(plain, boxes, grid, trim=TRIM).reshape(*grid, -1)

    def run(text: str) -> Tensor:
        return model(latents, timestep, inputs[f"text_{text}"], return_dict=False)[0]  # type: ignore[no-any-return]

    both: dict[str, Any] = {
        "foreground_prompt": inputs["text_foreground"],
        "background_prompt": inputs["text_background"],
    }
    found["plain"] = run("base")
    with TrajectoryControl(trajectory, **both, rope_steps=0).on(model):
        found["mask_only"] = run("base")
    with TrajectoryControl(trajectory, **both, trim=TRIM).on(model) as steering:
        found["full"] = run("base")
        with steering.unconditional():
            found["full_negative"] = run("negative")
    with TrajectoryControl(trajectory, self_mask="none", trim=TRIM).on(model):
        found["rope_only"] = run("base")
    return found
