"""Draws the pictures of this folder: `python docs/spacetime/take.py [smoke]`, with the models that the claims train.

The models come from the cache, or are trained first as in `everyformer verify --tags spacetime --scale cpu`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from everyformer.catalog import Job
from everyformer.papers.feedforward_3d import answers
from everyformer.papers.feedforward_3d import training as rooms
from everyformer.papers.feedforward_3d.answers import in_first
from everyformer.papers.feedforward_3d.export import picture
from everyformer.papers.ifactformer import study as flows
from everyformer.papers.pasta import study as bodies
from everyformer.papers.predformer import study as frames

HERE = Path(__file__).parent


def sheet(rows: Mapping[str, Sequence[Tensor]], name: str, titles: Sequence[str] = ()) -> None:
    """Rows of pictures, (height, width) or (3, height, width) in [0, 1], with their names on the left."""
    columns = max(map(len, rows.values()))
    plot = Figure(figsize=(1.6 + 0.95 * columns, 0.98 * len(rows) + 0.3 * bool(titles)), layout="constrained", dpi=120)
    axes = plot.subplots(len(rows), columns, squeeze=False)
    for line, (label, pictures) in zip(axes, rows.items(), strict=True):
        for axis, shown in zip(line, pictures, strict=True):
            axis.imshow(shown.movedim(0, -1) if shown.dim() == 3 else shown, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color="#bbbbbb", linewidth=0.6)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=8)
    plot.savefig(HERE / name)


def predformer(job: Job) -> None:
    """The ten frames that follow two sequences, true and as the networks of equal size and time make them."""
    truth = frames.unseen(job)[:1]
    shown = {"given": truth[0, : frames.GIVEN, 0], "true": truth[0, frames.GIVEN :, 0]}
    for name in ("PredFormer", "SimVP v1"):
        shown[name] = frames.trained(job, name).predict(truth)[0, :, 0].clamp(0, 1)  # type: ignore[arg-type]
    sheet({name: list(video[::3]) for name, video in shown.items()}, "predformer.png",
          [f"frame {place} or {place + frames.GIVEN}" for place in (1, 4, 7, 10)])  # fmt: skip


def ifactformer(job: Job) -> None:
    """Vorticity of a plane flow, simulated and as models roll it out from its first snapshot."""
    flow = flows.data("kolmogorov", job.scale).test[:1]
    films = {"simulated": flow}
    for name in (flows.OURS, "IFNO"):
        films[name] = flows.rolled(flows.forecaster(job, "kolmogorov", name), flow)
    turning = {name: _vorticity(film[0]) for name, film in films.items()}
    most = float(turning["simulated"].abs().quantile(0.995))
    colours = matplotlib.colormaps["RdBu_r"]
    pictures = []
    for place in range(0, flow.shape[1], max(1, flow.shape[1] // 40)):
        tiles = []
        for film in turning.values():
            tile = film[min(place, len(film) - 1)] / (2 * most) + 0.5
            big = F.interpolate(tile[None, None], scale_factor=4, mode="bicubic")[0, 0].clamp(0, 1)
            tiles.append(F.pad(torch.from_numpy(colours(big.numpy())[..., :3]), (0, 0, 3, 3, 3, 3), value=1.0))
        whole = (torch.cat(tiles, 1) * 255).round().byte().numpy()
        pictures.append(Image.fromarray(whole).quantize(32))
    pictures[0].save(HERE / "ifactformer.gif", save_all=True, append_images=pictures[1:], duration=120, loop=0)


def _vorticity(velocity: Tensor) -> Tensor:
    """dv/dx - du/dy of (time, x, y, 2) on a periodic square of side 2 pi, as (time, y, x)."""
    side = velocity.shape[1]
    waves = torch.fft.fftfreq(side, 1 / side)
    u, v = torch.fft.fft2(velocity.movedim(-1, 0), dim=(-2, -1))
    return torch.fft.ifft2(1j * (waves[:, None] * v - waves * u)).real.mT


def pasta(job: Job) -> None:
    """What a robot's sensors show in an episode that was held back, and what the model says of one that it cannot see."""
    known, net = bodies.robot(job.scale), bodies.pretrained(job, "c-bert")
    log, context = known.held, net.context
    length = min(100, int((log.episode == log.episode[0]).sum()) - context)
    starts = torch.arange(length)[:, None] + torch.arange(context)
    seen, acted = log.observations[starts], log.actions[starts]
    plot = Figure(figsize=(8, 4.2), layout="constrained", dpi=120)
    axes = plot.subplots(2, 2, sharex=True).flat
    sensors = known.tokenizer.sensors
    for axis, (index, title) in zip(axes, SENSORS.items(), strict=True):
        index = index % sensors
        hidden = torch.zeros(length, context, sensors + known.tokenizer.actuators, dtype=torch.bool)
        hidden[..., index] = True
        with torch.inference_mode():
            told = net.fill(seen, acted, hidden)[0][:, -1, index]
        axis.plot(seen[:, -1, index], color="#000000", linewidth=1.2, label="true")
        axis.plot(told, color="#d55e00", linewidth=1.2, label="C-BERT, without this sensor")
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    plot.supxlabel("step of an episode", fontsize=9)
    plot.axes[0].legend(frameon=False, fontsize=8)
    plot.savefig(HERE / "pasta.png")


# Gymnasium's numbers of what HalfCheetah shows.
SENSORS = {1: "angle of the trunk (rad)", 2: "angle of the back thigh (rad)", 8: "forward speed (m/s)",
           14: "speed of the front thigh (rad/s)"}  # fmt: skip


@torch.no_grad()
def feedforward_3d(job: Job) -> None:
    """Two views of rooms that were not trained on, and their points from the left and the right, true and found."""
    columns: dict[str, list[Tensor]] = {"both views": []}
    for textured in (True, False):
        scene = rooms.unseen(job, 2, 4, textured=textured)
        settings = answers.tuned(*(getattr(rooms.tuning(job, textured=textured), name)
                                   for name in ("images", "intrinsics", "extrinsics")))  # fmt: skip
        found = {
            "true": in_first(scene.points, scene.extrinsics),
            "pair model": answers.by_pair(rooms.pair_model(job), scene.images).points,
            "all views": answers.by_all_views(rooms.multi_model(job)[0], scene.images).points,
            "classic": answers.by_matching(scene.images, scene.intrinsics, settings).points,
        }
        for index in (0, 1):
            columns["both views"] += list(scene.images[index])
            colours = scene.images[index].movedim(1, -1)
            for name, points in found.items():
                sides = [picture(points[index], colours, degrees=angle, size=96) for angle in (-30.0, 30.0)]
                columns.setdefault(name, []).extend(sides)
    sheet(columns, "feedforward_3d.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    scale: Any = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        for draw in (predformer, ifactformer, pasta, feedforward_3d):
            draw(Job(scale=scale, seed=0, device="cpu", folder=Path(folder) / draw.__name__))
