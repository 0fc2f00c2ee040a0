import pytest
import torch

from everyformer import compressors
from everyformer.catalog import Job
from everyformer.lab import compress_subjects, data, text
from everyformer.papers.inference_survey import bench, claim, pictures
from everyformer.parts.compress import storage


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path_factory.getbasetemp() / "compress")


def run(name, folder):
    return getattr(claim, name)(Job("smoke", 0, "cpu", folder))


def test_every_scheme_is_a_point_and_the_small_model_is_as_small(tmp_path):
    found = run("compression", tmp_path)
    assert found.method > 0 and found.baseline > 0
    assert found.extras["size (%), smaller model"] <= 60
    assert found.extras["rate, smaller model"] in claim.SMALL_RATES
    sizes = {name: value for name, value in found.extras.items() if name.startswith("size (%), characters")}
    assert len(sizes) == 14 and all(0 < value <= 100 for value in sizes.values())
    assert [panel.title for panel in found.series] == ["Size and quality, characters", "Size and quality, digits"]
    assert "trained small" in found.series[0].lines


def test_the_smaller_model_has_no_more_bytes_and_as_many_steps(tmp_path):
    job = Job("smoke", 0, "cpu", tmp_path)
    small = claim._smaller(job, 80_000, 1e-3)
    assert len(storage.to_bytes(small)) <= 80_000 < claim._file(small.config.hidden_size + 4, (2, 2))
    assert claim.PRETRAINING["smoke"] == 20  # what text.pretrained does at this scale


def test_as_many_weights_are_gone_on_both_sides(tmp_path):
    found = run("sparsity_speed", tmp_path)
    assert 30 < found.extras["weights gone (%)"] < 40
    assert found.method > 0 and found.baseline > 0
    assert len([name for name in found.extras if name.startswith("speed-up")]) == 7


def test_compressed_rows_give_the_same_product():
    torch.manual_seed(0)
    model = compressors.apply(text.build("llama", width=32, layers=2, heads=2), "magnitude", sparsity=0.7).eval()
    pieces = torch.randint(256, (2, 9))
    with torch.no_grad():
        expected = model(pieces).logits
        torch.testing.assert_close(pictures.sparse(model)(pieces).logits, expected, atol=1e-5, rtol=1e-4)


def test_merging_is_chosen_by_other_digits_and_drawn_as_a_picture(tmp_path):
    found = run("merging", tmp_path)
    assert found.extras["pairs in each block"] in (0, 1, 2)
    grid = torch.tensor(found.series[1].grid)
    assert grid.shape == (4, 8)
    assert "of 16 patches, and of 13 merged tokens" in found.series[1].title or len(grid[:, 4:].unique()) < 16
    assert float(grid[:, :4].mean()) == pytest.approx(float(grid[:, 4:].mean()), abs=0.01)


def test_pairs_drawn_blindly_are_of_an_even_and_an_odd_place():
    found = claim._blind(torch.Generator().manual_seed(0))(torch.zeros(3, 9, 4), 3, 1)
    assert (found.source % 2 == 0).all() and (found.source > 0).all() and (found.target % 2 == 1).all()
    assert found.kept.shape == (3, 6) and (found.kept[:, 0] == 0).all()


def test_the_student_is_the_same_with_and_without_a_teacher(tmp_path):
    found = run("distillation_gain", tmp_path)
    assert 0 <= found.method <= 100 and 0 <= found.baseline <= 100
    assert found.extras["parameters, student"] > 0
    assert {found.extras[f"rate, {name}"] for name in ("labels alone", "distilled")} <= set(claim.RATES)
    again = run("distillation_gain", tmp_path)  # from the cache
    assert (again.method, again.baseline) == (found.method, found.baseline)


def test_what_two_methods_lose_is_set_against_their_sum(tmp_path):
    found = run("composed", tmp_path)
    lost = {
        name: found.extras[f"quality lost (%), {name}"]
        for name in ("half of the weights", "int8", "half of the weights, int8")
    }
    wanted = lost["half of the weights, int8"] - lost["half of the weights"] - lost["int8"]
    assert found.method == pytest.approx(wanted)
    line = found.series[0].lines["int8"]
    assert len(line[0]) == 3 and line[0] == sorted(line[0])
    assert lost["half of the weights"] + lost["int8"] in line[0] and lost["half of the weights, int8"] in line[1]


def test_the_plan_is_of_the_model_that_is_launched():
    plan = claim.plan()
    assert 85e6 < plan.parameters < 100e6 and plan.flops > 1e12
    assert compress_subjects.LARGE["width"] == 768


def test_every_case_of_the_bench_runs():
    cases = list(bench.cases(quick=True, device="cpu"))
    assert len(cases) == 8
    for case in cases:
        case.ours()
        case.peers["as built"]()
