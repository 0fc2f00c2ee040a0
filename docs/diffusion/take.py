"""Draws the pictures of this folder: `python docs/diffusion/take.py [smoke]`, with the models that the claims train.

The models come from the cache, or are trained first as in `everyformer run ras diffscaler ditraj vdt --scale cpu`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from everyformer.catalog import Job
from everyformer.lab import generation
from everyformer.papers.diffscaler import quality as tuning
from everyformer.papers.ditraj import claim as steering
from everyformer.papers.ditraj import digits as captioned
from everyformer.papers.ras import digits as painted
from everyformer.papers.ras import quality as adaptive
from everyformer.papers.ras.miniature import follow
from everyformer.papers.ras.pipelines import accelerate
from everyformer.papers.vdt import study
from everyformer.parts.diffusion import sample

HERE = Path(__file__).parent
Rows = Mapping[str, Sequence[Tensor]]


def sheet(rows: Rows, name: str, *, boxes: Sequence[Any] = (), titles: Sequence[str] = ()) -> None:
    """Rows of pictures (height, width) in [-1, 1] with their names, and boxes (x, y, side) over each column."""
    columns = max(len(row) for row in rows.values())
    plot = Figure(figsize=(1.9 + 0.8 * columns, 0.85 * len(rows) + 0.3 * bool(titles)), layout="constrained", dpi=120)
    plot.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
    axes = plot.subplots(len(rows), columns, squeeze=False)
    for line, (label, pictures) in zip(axes, rows.items(), strict=True):
        for column, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color="#bbbbbb", linewidth=0.6)
            if column < len(pictures):
                axis.imshow(pictures[column].cpu(), cmap="gray", vmin=-1, vmax=1)
                if boxes:
                    x, y, side = boxes[column]
                    axis.add_patch(_outline(x, y, side))
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=8)
    plot.savefig(HERE / name)


def _outline(x: float, y: float, side: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor="#e69f00", linewidth=1.5)


def film(videos: Sequence[Tensor], name: str) -> None:
    """Videos (frames, height, width) side by side as a GIF, four times their size."""
    joined = torch.cat([torch.nn.functional.pad(video.cpu(), (1, 1, 1, 1), value=0.0) for video in videos], dim=2)
    frames = [
        Image.fromarray(((frame + 1) * 127.5).round().byte().numpy()).resize(
            (4 * joined.shape[2], 4 * joined.shape[1]), Image.Resampling.NEAREST
        )
        for frame in joined
    ]
    frames[0].save(HERE / name, save_all=True, append_images=frames[1:], duration=160, loop=0)


@torch.no_grad()
def ras(job: Job) -> None:
    """Digits by ten dense steps and by region-adaptive ones, and what was updated when."""
    model, scheduler = painted.painter(job.scale, job.device), FlowMatchEulerDiscreteScheduler()
    noise = torch.randn(10, 1, painted.SIDE, painted.SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10)
    dense = follow(model, scheduler, noise, labels, adaptive.STEPS)
    with accelerate(model, scheduler=scheduler, **adaptive.SETTINGS) as sampling:
        fast = follow(model, scheduler, noise, labels, adaptive.STEPS)
    sheet({"all tokens": list(dense[:, 0]), "region-adaptive": list(fast[:, 0])}, "ras.png")
    updates = {f"the {digit}": [2.0 * step[digit].float() - 1 for step in sampling.updates] for digit in (0, 4, 8)}
    sheet(updates, "ras_updates.png", titles=[f"step {step + 1}" for step in range(adaptive.STEPS)])


def diffscaler(job: Job) -> None:
    """What is drawn for the new classes by the base and after tuning, from the same noise."""
    base = tuning.pretrained(job.scale, device=job.device)
    noise = torch.randn(10, 1, generation.SIDE, generation.SIDE, generator=torch.Generator().manual_seed(0))
    wanted = torch.arange(10) % tuning.CLASSES
    models = {method: tuning.best(method, base, job)[0] for method in (tuning.DIFFSCALER, tuning.FULL)}
    rows = {
        name: list(sample(model, noise, wanted, steps=20).detach()[:, 0])
        for name, model in {"before": base.eval(), **models}.items()
    }
    titles = [f"a {tuning.CLASSES + int(label)}" for label in wanted]
    sheet(rows, "diffscaler.png", titles=titles)


@torch.no_grad()
def ditraj(job: Job) -> None:
    """A digit without and with control, the boxes over the frames."""
    model = captioned.trained(job.scale, device=job.device)
    frames = captioned.SIZES[job.scale].frames
    (trajectory,), corners = steering.held_out(1, frames, 0)
    labels = torch.tensor([0, 1, 3, 7])
    noise = torch.randn(4, frames, 1, captioned.HALF, captioned.HALF, generator=torch.Generator().manual_seed(0))
    videos = {
        name: steering.draw(model, labels, noise, trajectory, name, 20) for name in (steering.NONE, steering.DITRAJ)
    }
    corners = corners[0] - steering.DIGIT / 2
    rows = {f"{name}: {labels[index]}": list(video[index, :, 0]) for index in (0, 3) for name, video in videos.items()}
    sheet(rows, "ditraj.png", boxes=[(x, y, steering.DIGIT) for x, y in corners.tolist()])
    film([video[index, :, 0] for video in videos.values() for index in range(4)], "ditraj.gif")


@torch.no_grad()
def vdt(job: Job) -> None:
    """Videos that one model predicts, fills in and invents, beside the true ones."""
    truth, model = study.unseen(job)[:4], study.vdt(job, "unified")
    rows, films = {"true": list(truth[0, :, 0])}, [truth[0, :, 0]]
    for task in ("prediction", "interpolation", "unconditional"):
        made, _ = study.generated(job, model, truth, task)  # type: ignore[arg-type]
        rows[task] = list(made[0, :, 0])
        films.append(made[0, :, 0])
    sheet(rows, "vdt.png")
    film(films, "vdt.gif")


if __name__ == "__main__":
    torch.set_num_threads(1)
    scale: Any = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        for draw in (ras, diffscaler, ditraj, vdt):
            draw(Job(scale=scale, seed=0, device="cpu", folder=Path(folder) / draw.__name__))
