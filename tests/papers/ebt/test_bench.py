from everyformer.lab.bench import run_cases
from everyformer.papers.ebt import bench


def test_cases_run():
    rows = run_cases(bench.cases(quick=True, device="cpu"), rounds=1, device="cpu")
    assert [row.name for row in rows][:2] == ["training step, S1", "training step, S2"]
    assert all("MiB" in row.note for row in rows[:2])
