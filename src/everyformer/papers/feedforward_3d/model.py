"""Feed-forward 3D reconstruction: one transformer from unposed images to points, depth and cameras (arXiv 2507.08448).

Two families, made of the same parts. Start here; each file reads on its own:

=============  ========================================================================================================
``pair``       :class:`PairModel` (DUSt3R, arXiv 2312.14132): a shared encoder, two decoders that look at one another
               through cross-attention, a head per view. Both pointmaps are in the frame of view 1.
``multiview``  :class:`MultiViewModel` (VGGT, arXiv 2503.11651): all views at once; attention inside a view alternates
               with attention over all views; heads for points, depth and cameras.
``blocks``     attention, rotary positions in two dimensions, the blocks, the DINOv2 encoder
``heads``      linear and DPT heads, and what turns their output into points and confidence
``cameras``    pose codes, extrinsics, intrinsics, unprojection, the camera head
``losses``     :func:`pair_loss` and :func:`multiview_loss`; ``focal``: focal lengths from a pointmap
=============  ========================================================================================================

Conventions, everywhere: images are (batch, 3, height, width) or (batch, views, 3, height, width) with values in [0, 1]
(the models normalise them) and sides that the patch divides; points are (..., height, width, 3); axes are OpenCV's (x to
the right, y down, z forward); extrinsics (3, 4) map world to camera; pixel (column 0, row 0) is at the origin and the
principal point at (width / 2, height / 2); units are free, as the models know no scale.

``PairModel(...)(image1, image2)`` gives two :class:`Pointmap`: ``points`` (batch, height, width, 3) and ``confidence``
(batch, height, width), at least 1. Pairs of many images cost less with ``encode`` once per image and ``decode`` per pair.

``MultiViewModel(...)(images)`` gives a :class:`Reconstruction`: ``points`` (batch, views, height, width, 3) in the frame of
the first view, ``depth`` (batch, views, height, width), a confidence for each, ``pose_codes`` (refinements, batch, views,
9), ``extrinsics`` (batch, views, 3, 4) and ``intrinsics`` (batch, views, 3, 3) of the last refinement.
"""

from __future__ import annotations

from typing import Any

from everyformer.papers.feedforward_3d.heads import Pointmap
from everyformer.papers.feedforward_3d.multiview import MultiViewModel, Reconstruction
from everyformer.papers.feedforward_3d.pair import PairModel

__all__ = [
    "MultiViewModel",
    "PairModel",
    "Pointmap",
    "Reconstruction",
    "dust3r_512_dpt",
    "dust3r_linear",
    "multi_tiny",
    "pair_tiny",
    "vggt_1b",
]


def dust3r_linear(**options: Any) -> PairModel:
    """DUSt3R with linear heads, at 224 or 512 pixels (one architecture): 0.53 billion parameters."""
    return PairModel(**options)


def dust3r_512_dpt(**options: Any) -> PairModel:
    """DUSt3R with DPT heads: 0.57 billion parameters."""
    return PairModel(**{"head": "dpt", **options})


def vggt_1b(**options: Any) -> MultiViewModel:
    """VGGT-1B without its head for tracks."""
    return MultiViewModel(**options)


def pair_tiny(**options: Any) -> PairModel:
    """A pair model for renders of 64 x 64: 4 + 2 x 4 blocks of width 128, patches of 8."""
    sizes = {"patch": 8, "dim": 128, "depth": 4, "heads": 4, "decoder_dim": 128, "decoder_depth": 4, "decoder_heads": 4}
    return PairModel(**{**sizes, **options})  # type: ignore[arg-type]


def multi_tiny(**options: Any) -> MultiViewModel:
    """A multi-view model for renders of 64 x 64: 4 blocks, then 4 + 4, of width 128, patches of 8, one register."""
    sizes = {
        "image_size": 64,
        "patch": 8,
        "dim": 128,
        "depth": 4,
        "heads": 4,
        "registers": 1,
        "encoder_depth": 4,
        "camera_depth": 2,
        "camera_heads": 4,
        "features": 32,
        "layer_dims": (32, 32, 64, 64),
        "layers": (0, 1, 2, 3),
    }
    return MultiViewModel(**{**sizes, **options})  # type: ignore[arg-type]
