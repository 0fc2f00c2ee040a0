import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab import data
from everyformer.lab.measure import count_parameters
from everyformer.papers.ftp import FutureTokenPredictor, claim, future_loss, plays, programs


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path_factory.getbasetemp() / "ftp")


def run(name, folder):
    return getattr(claim, name)(Job("smoke", 0, "cpu", folder))


def test_neighbours_are_compared_in_models_of_equal_size(tmp_path):
    found = run("smoothness", tmp_path)
    assert -1 <= found.baseline <= 1 and -1 <= found.method <= 1
    assert found.extras["parameters, ftp"] == pytest.approx(found.extras["parameters, gpt"], rel=0.05)
    losses = {name: value for name, value in found.extras.items() if "loss (nats)" in name}
    assert len(losses) == 3 and all(0 < value < 6 for value in losses.values())
    again = run("smoothness", tmp_path)  # from the cache
    assert (again.method, again.baseline) == (found.method, found.baseline)


def test_states_tell_made_up_acts_apart(tmp_path):
    found = run("topic", tmp_path)
    assert found.method > 50 and found.baseline > 50  # a third by chance


def test_checked_drafts_write_more_than_a_token_per_pass(tmp_path):
    found = run("speculative", tmp_path)
    assert found.baseline == 1.0
    assert 1 < found.method <= 8
    assert found.extras["tokens per pass, drafts of 2"] <= 2


def test_programs_are_written_by_both(tmp_path):
    found = run("code", tmp_path)
    assert 0 <= found.method <= 100 and 0 <= found.baseline <= 100
    assert found.extras["parameters, ftp"] == pytest.approx(found.extras["parameters, gpt"], rel=0.1)


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_both_kinds_of_model_have_as_many_parameters(scale):
    with torch.device("meta"):
        texts = [count_parameters(plays.build(name, scale)) for name in ("ftp", "gpt")]
        codes = [count_parameters(programs.build(name, programs.SIZES[scale])) for name in ("ftp", "gpt")]
    assert texts[0] == pytest.approx(texts[1], rel=0.03)
    assert codes[0] == pytest.approx(codes[1], rel=0.03)


def test_an_answer_is_the_order_in_which_a_program_can_be_run():
    size = programs.SIZES["cpu"]
    drawn = programs.programs(size, 50, torch.Generator().manual_seed(0))
    equals, colon, write = size.variables, size.variables + 1, size.variables + 2
    assert drawn.shape == (50, size.prompt + size.answer)
    for row in drawn.tolist():
        lines = [row[place : place + 3] for place in range(0, size.prompt - 3, 3)]
        assert all(line[1] == equals for line in lines)
        assert row[size.prompt - 3] == colon and row[size.prompt - 1] == write
        needs = {line[0]: line[2] for line in lines}
        assert len(needs) == size.chains * size.links
        name, order = row[size.prompt - 2], []
        while name in needs:
            order.insert(0, name)
            name = needs[name]
        assert row[size.prompt :] == [name, *order]


def test_a_probe_finds_what_is_linear_in_states_and_nothing_in_noise():
    torch.manual_seed(0)
    inputs = torch.randn(600, 4)
    labels = (inputs[:, 1] > 0).long()
    parts = [(inputs[part], labels[part]) for part in torch.arange(600).split(200)]
    assert claim.probe(*parts) > 95
    noise = [(torch.randn_like(part), known) for part, known in parts]
    assert 35 < claim.probe(*noise) < 65


def test_cosines_of_states_that_turn_by_a_fixed_angle():
    angles = 0.3 * torch.arange(12.0)
    states = 5 * torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    assert claim.cosines(states, 3) == pytest.approx(torch.cos(0.3 * torch.arange(1, 4.0)).tolist())


def test_passages_are_whole_and_labelled_by_where_they_are():
    source = plays.plays("smoke").train
    found, labels = plays.passages("smoke", seed=0)
    every = source.unfold(0, found.shape[1], found.shape[1])
    for passage, label in zip(found[:5], labels[:5], strict=True):
        place = (every == passage).all(1).nonzero()[0, 0]
        assert label == place * plays.SIZES["smoke"].topics // len(every)


def test_the_answers_loss_is_of_the_answer_alone():
    size = programs.SIZES["smoke"]
    torch.manual_seed(0)
    model = programs.build("ftp", size)
    assert isinstance(model, FutureTokenPredictor)
    drawn = programs.programs(size, 4, torch.Generator().manual_seed(0))
    places = torch.arange(size.prompt - 1, size.prompt + size.links).expand(4, -1)
    torch.testing.assert_close(programs.Training(model, size)(drawn), future_loss(model, drawn, places))
    gpt = programs.build("gpt", size)
    logits = gpt(drawn)[:, size.prompt - 1 : -1]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), drawn[:, size.prompt :].flatten())
    torch.testing.assert_close(programs.Training(gpt, size)(drawn), wanted)


def test_plans_are_of_the_papers_size():
    plans = [getattr(claim, f"plan_{name}")() for name in ("smoothness", "topic", "code", "speculative")]
    assert all(110e6 < plan.parameters < 150e6 and plan.flops > 1e12 for plan in plans)
