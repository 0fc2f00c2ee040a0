import pytest
import torch
from torch import nn

from everyformer.papers.joint_sampling import JointSampler, MaskedDiffusionLM


@pytest.fixture
def base():
    """Ten tokens and a mask, with weights large enough that predictions depend on what is visible."""
    torch.manual_seed(0)
    model = MaskedDiffusionLM(vocabulary=11, dim=32, depth=2, heads=2, kv_heads=1, mask_token=10, longest=24)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture
def untrained(base):
    return JointSampler.from_base(base).eval()


@pytest.fixture
def sampler(untrained):
    """One that changes what the base says."""
    nn.init.normal_(untrained.leave.weight, std=0.3)
    return untrained
