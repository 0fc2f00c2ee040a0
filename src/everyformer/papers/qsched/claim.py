"""The claims of Q-Sched: a quantised few-step model against full precision, and against itself uncalibrated."""

from __future__ import annotations

from typing import Any

import torch

from everyformer.catalog import Job, Measurement, Plan
from everyformer.lab.measure import count_flops
from everyformer.papers.qsched import quality

# The authors' script: a grid of 50 by 50 values, each scored on 25 prompts.
TRIALS, PROMPTS = 50 * 50, 25


def lcm(job: Job) -> Measurement:
    """Gain of the calibrated W4A8 model over full precision, four steps; full precision's gain over itself is none."""
    return _gain(quality.lcm(job))


def pcm(job: Job) -> Measurement:
    """The same in eight steps of another sampler."""
    return _gain(quality.pcm(job))


def _gain(study: quality.Study) -> Measurement:
    return Measurement(study.gain("Q-Sched"), 0.0, study.extras(), study.panels())


def calibration(job: Job) -> Measurement:
    """Distances of the quantised model with the coefficients found, and with all ones."""
    study = quality.lcm(job)
    return Measurement(study.distances["Q-Sched"], study.distances["quantised"], study.extras(), study.panels())


def plan_lcm() -> Plan:
    """Calibration of a four-step model of Stable Diffusion's size."""
    return _plan("qsched.lcm", steps=4)


def plan_pcm() -> Plan:
    """Calibration of an eight-step model of Stable Diffusion's size."""
    return _plan("qsched.pcm", steps=8)


def _plan(claim: str, steps: int) -> Plan:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768
        )  # the rest are Stable Diffusion 1.5's own
        inputs = torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 768)
        flops = count_flops(lambda: unet(*inputs))
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    trial = steps * PROMPTS * flops
    scores = 2 * 8 * 4096**2 * 2  # the largest attention of one prompt: scores and weights, 8 heads, 64 x 64, two bytes
    notes = (
        f"FLOPs of one trial of {PROMPTS} prompts, of {TRIALS} in the authors' grid; memory of the U-Net in W4 and of "
        f"its largest attention; the run at this scale takes 60,000 digits and a larger DiT, on one GPU"
    )
    launch = f"everyformer run {claim} --scale paper --device cuda"
    return Plan(parameters, trial, parameters / 2 + scores, launch, notes)
