import math

import pytest
import torch

import everyformer
from everyformer.catalog import Job
from everyformer.papers.mesa import CausalLinearAttention, ar_sequences, bench, claim

CARD = everyformer.paper("mesa")


@pytest.mark.parametrize("name", [c.name for c in CARD.claims])
def test_each_claim_runs_at_smoke_scale_and_shows_its_mechanism(name, tmp_path):
    found = getattr(claim, CARD.claim(name).run)(Job("smoke", 0, "cpu", tmp_path))
    assert all(math.isfinite(value) for value in (found.method, found.baseline, *found.extras.values()))
    assert found.series
    if name != "limit_gaussian":  # 300 sequences say nothing about sixth moments of Gaussian values
        assert (found.method > found.baseline) == (CARD.claim(name).better == "higher")


def test_the_benchmark_compares_the_same_numbers():

    layer, x = CausalLinearAttention(3), ar_sequences("signs", 3, 45, 2, 0)
    torch.testing.assert_close(bench._loop(layer)(x), layer(x), atol=1e-4, rtol=1e-4)
