import pytest
import torch

from everyformer.catalog import Job, paper
from everyformer.papers.joint_sampling import bench, claim, mauve, tasks


def test_the_mauve_score_is_one_for_equal_sets_and_small_for_disjoint_ones():
    ours = torch.randn(200, 4)
    near, far = torch.randn(200, 4), torch.randn(200, 4) + 20
    assert mauve.mauve(ours, ours, clusters=20, seed=0) == pytest.approx(1.0, abs=1e-4)
    assert mauve.mauve(ours, near, clusters=20, seed=0) > 0.8
    assert mauve.mauve(ours, far, clusters=20, seed=0) < 0.02
    with pytest.raises(ValueError, match="ours and theirs must have equal features, got 4 and 3"):
        mauve.mauve(ours, torch.randn(5, 3), clusters=2, seed=0)
    with pytest.raises(ValueError, match="clusters must be from 2 to the 400 samples, got 401"):
        mauve.mauve(ours, near, clusters=401, seed=0)


def test_the_frontier_of_two_bins_is_the_integral():
    p, q = torch.tensor([0.9, 0.1]).double(), torch.tensor([0.5, 0.5]).double()
    share = torch.linspace(0, 1, 20_001).double()[1:-1, None]
    mixed = share * p + (1 - share) * q
    x, y = (((part * (part / mixed).log()).sum(-1) * -5).exp() for part in (q, p))
    wanted = float(-torch.trapezoid(y, x)) + float(y[-1] * x[-1])  # and the part below the curve's last point
    assert mauve.frontier_area(p, q) == pytest.approx(wanted, abs=0.01)


def test_the_chain_scores_its_own_sequences_best():
    law, task = tasks.chain(claim.CHAIN["smoke"], 0)
    assert law.learnt(law.nll(task.sequences), task.sequences) == pytest.approx(1.0)
    shuffled = task.sequences.flatten()[torch.randperm(task.sequences.numel())].view_as(task.sequences)
    assert law.learnt(law.nll(shuffled), task.sequences) == pytest.approx(0.0, abs=0.01)


def test_a_base_that_has_not_learnt_the_chain_fails_loudly(tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.LEARNT, "smoke", 0.999)
    with pytest.raises(RuntimeError, match="the base must have learnt 100% of the chain's dependence, it has"):
        claim.chain(Job("smoke", 0, "cpu", tmp_path))


def test_a_base_that_has_not_learnt_the_pairs_fails_loudly(tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.UNLEARNT, "smoke", 10.0)
    with pytest.raises(RuntimeError, match="the base must write at most 10% impossible pairs at one token per pass"):
        claim.pairs(Job("smoke", 0, "cpu", tmp_path))


def test_pairs_are_told_from_what_is_impossible():
    law, task = tasks.pairs(claim.PAIRS["smoke"], 0)
    assert law.impossible(task.sequences) == 0
    assert 0.4 < float((task.sequences[:, 0] < tasks.LEADERS).float().mean()) < 0.6
    first, others = torch.tensor([0]), [second for second in range(8, 16) if second not in law.seconds[0]]
    assert law.impossible(torch.stack([first, law.seconds[0, :1]], 1)) == 0
    assert law.impossible(torch.tensor([[0, others[0], 3, int(law.seconds[3, 1])]])) == pytest.approx(100 / 3)
    assert law.impossible(torch.tensor([[8, 9], [0, 1]])) == 100


@pytest.mark.parametrize("name", ["chain", "chain8", "pairs", "mauve", "speed"])
def test_smoke_runs(name, tmp_path):
    found = getattr(claim, name)(Job("smoke", 0, "cpu", tmp_path))
    known = paper("joint_sampling").claim(name)
    assert known.threshold is not None
    assert found.series and all(len(line[0]) == 4 for panel in found.series for line in panel.lines.values())
    if name != "speed":
        label = {"pairs": "impossible pairs (%)", "mauve": "MAUVE-like score"}.get(name, "NLL (nats a token)")
        one = [found.extras[f"{label}, {way}, K = 1"] for way in (claim.SAMPLER, claim.PARALLEL)]
        assert one[0] == one[1]


def test_plans_are_of_dream():
    plan = claim.plan_mauve()
    assert 7.8e9 < plan.parameters < 8.0e9
    assert plan.launch == "everyformer run joint_sampling.mauve --scale paper --device cuda"
    assert "chain or pairs" in claim.plan_known().notes


def test_the_cases_of_the_bench_run():
    for case in bench.cases(True, "cpu"):
        shapes = {fn().shape for fn in (case.ours, *case.peers.values())}
        assert shapes == {(2, 16)}
