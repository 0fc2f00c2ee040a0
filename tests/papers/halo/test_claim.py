import math

import pytest

from everyformer.catalog import Job, paper
from everyformer.papers.halo import claim


def job(folder):
    return Job("smoke", 0, "cpu", folder)


def test_the_study_compares_every_variant_from_the_same_start(tmp_path):
    measured = claim.accuracy(job(tmp_path))
    losses = {name: value for name, value in measured.extras.items() if name.startswith("loss")}
    assert len(losses) == 7 and len(set(losses.values())) == 7  # bf16 and six that round differently
    assert measured.method == measured.extras["above bf16 (%), level 2 int8"]
    share = losses["loss, level 2 int8"] / losses["loss, bf16"] - 1
    assert measured.method == pytest.approx(100 * share)
    assert abs(measured.method) < 5
    assert measured.series[0].ticks[0] == "level 0 int8"


def test_speed_and_memory_are_measured(tmp_path):
    measured = claim.speed(job(tmp_path))
    assert all(math.isfinite(value) and value > 0 for value in measured.extras.values())
    assert {f"speed-up, HALO-{level}, int8" for level in (0, 1, 2)} <= set(measured.extras)
    assert measured.baseline == 1


def test_two_processes_gather_fewer_bytes_and_train_alike(tmp_path):
    measured = claim.communication(job(tmp_path))
    extras = measured.extras
    # Half of the blocks' bytes; embeddings, head and norms stay in bf16.
    assert 1.5 < measured.baseline / measured.method < 2
    assert extras["scattered (MiB), HQ-FSDP"] == extras["scattered (MiB), bf16"]
    assert extras["loss (nats), HQ-FSDP"] == pytest.approx(extras["loss (nats), bf16"], rel=0.02)


def test_plans_are_of_the_papers_model():
    for card in paper("halo").claims:
        plan = getattr(claim, card.plan)()
        assert 8.0e9 < plan.parameters < 8.1e9
        assert plan.launch.startswith(f"everyformer run halo.{card.name} ")
