"""What VDT is measured beside, and with: a SimVP that predicts, and a network whose features tell videos apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.lab.moving_digits import SIDE


def _layer(inside: int, outside: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1), nn.GroupNorm(2, outside), nn.SiLU()
    )  # fmt: skip


class SimVP(nn.Module):
    """Frames after frames by convolutions alone (arXiv 2206.05099): (batch, given, 1, 32, 32) to as many later frames.

    Each frame is encoded by itself, all frames together are translated as channels, and each later frame is decoded with
    the fine features of a given one beside it.
    """

    def __init__(self, given: int, later: int, *, width: int = 16, hidden: int = 72, depth: int = 4) -> None:
        super().__init__()
        self.given, self.later, self.width = given, later, width
        self.fine = _layer(1, width)
        self.encoder = nn.Sequential(_layer(width, width, stride=2), _layer(width, width, stride=2))
        self.enter = nn.Conv2d(given * width, hidden, 1)
        self.translator = nn.ModuleList(
            nn.Sequential(_layer(hidden, hidden), nn.Conv2d(hidden, hidden, 3, padding=1)) for _ in range(depth)
        )
        self.leave = nn.Conv2d(hidden, later * width, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.SiLU(),
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.SiLU(),
        )  # fmt: skip
        self.out = nn.Sequential(_layer(2 * width, width), nn.Conv2d(width, 1, 1))

    def forward(
        self, video: Float[Tensor, "batch given 1 height width"]
    ) -> Float[Tensor, "batch later 1 height width"]:
        batch = len(video)
        fine = self.fine(video.flatten(0, 1))
        x = self.enter(self.encoder(fine).view(batch, self.given * self.width, SIDE // 4, SIDE // 4))
        for layer in self.translator:
            x = x + layer(x)
        coarse = self.decoder(self.leave(x).view(batch * self.later, self.width, SIDE // 4, SIDE // 4))
        last = fine.view(batch, self.given, self.width, SIDE, SIDE)[:, -1:].expand(-1, self.later, -1, -1, -1)
        return self.out(torch.cat([coarse, last.flatten(0, 1)], 1)).view(batch, self.later, 1, SIDE, SIDE)


class Watcher(nn.Module):
    """Says which digit a video shows and where it is in each frame; what it sees before that are a video's features."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.body = nn.Sequential(
            nn.Conv3d(1, 8, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)), nn.GELU(),
            nn.Conv3d(8, 16, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv3d(16, 32, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(),
            nn.LazyLinear(64), nn.GELU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10 + 2 * frames)
        self.body(torch.zeros(1, 1, frames, SIDE, SIDE))

    def features(self, video: Float[Tensor, "batch frames 1 height width"]) -> Float[Tensor, "batch 64"]:
        """Features (batch, 64)."""
        return self.body(video.transpose(1, 2))  # type: ignore[no-any-return]

    def loss(
        self,
        frames: Float[Tensor, "batch frames 1 height width"],
        labels: Int[Tensor, "batch 1"],
        boxes: Float[Tensor, "batch frames 1 4"],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the digit, and the error of its centre in half frames."""
        digits, places = self.head(self.features(frames)).split([10, 2 * self.frames], dim=1)
        centres = (boxes[:, :, 0, :2] + boxes[:, :, 0, 2:]) / SIDE - 1
        return F.cross_entropy(digits, labels[:, 0]) + 10 * F.mse_loss(places, centres.flatten(1))
