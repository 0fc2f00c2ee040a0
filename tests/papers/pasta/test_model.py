import copy

import pytest
import torch

from everyformer.lab.measure import count_parameters
from everyformer.papers.pasta import OBJECTIVES, SIZES, Actor, Pasta, Size
from everyformer.papers.pasta.objectives import Windows, pretraining_loss

COMPONENT = [name for name, objective in OBJECTIVES.items() if objective.tokens == "component"]


def window(log, batch=3, steps=4):
    places = 7 * torch.arange(batch)[:, None] + torch.arange(steps)
    return log.observations[places], log.actions[places]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_outputs_are_one_a_token(objective, build, log):
    model = build(objective)
    tokens = 4 * 6 if objective in COMPONENT else 4 * 2
    assert model(*window(log)).shape == (3, tokens, 32)


def test_only_causal_models_look_back_alone(build, log):
    seen, acted = window(log)
    changed = acted.clone()
    changed[:, -1, -1] += 0.5
    for objective, moved in (("c-gpt", False), ("m-gpt", False), ("c-bert", True), ("mtm", True)):
        model = build(objective)
        difference = (model(seen, acted) - model(seen, changed))[:, :-1]
        assert (difference.abs().max() > 1e-4) == moved, objective


def test_codes_tell_step_component_and_domain_apart(two):
    model = two()
    codes = model.codes("wheel").flatten(0, 1)
    assert len(torch.unique(codes, dim=0)) == model.context * 6
    assert model.codes("tricycle").shape[1] == 4
    assert not torch.equal(model.codes("tricycle")[0, 0], model.codes("wheel")[0, 0])


def test_hidden_values_do_not_reach_the_output(build, log):
    model, (seen, acted) = build("c-bert"), window(log)
    hidden = torch.zeros(3, 4, 6, dtype=torch.bool)
    hidden[:, :, 1] = True
    other = seen.clone()
    other[..., 1] = -other[..., 1] + 1
    assert torch.equal(model(seen, acted, hidden=hidden), model(other, acted, hidden=hidden))
    assert not torch.allclose(model(seen, acted), model(other, acted))


@pytest.mark.parametrize("value", ["discrete", "continuous"])
@pytest.mark.parametrize("objective", COMPONENT)
def test_a_lost_sensor_does_not_reach_the_features(objective, value, build, log):
    model, (seen, acted) = build(objective, value=value), window(log)
    other = seen.clone()
    other[..., 2] += 1.3
    history = seen[:, :-1], acted[:, :-1]
    changed = other[:, :-1], acted[:, :-1]
    with_history = [
        model.observation_features(x[:, -1], h, missing=[2]) for x, h in ((seen, history), (other, changed))
    ]
    assert torch.equal(*with_history)
    assert not torch.allclose(model.observation_features(seen[:, -1]), model.observation_features(other[:, -1]))
    whole = model.observation_features(seen[:, -1], history)
    assert whole.shape == (3, 32)
    assert not torch.allclose(whole, model.observation_features(seen[:, -1]))


def test_features_are_the_mean_of_the_newest_states_outputs(build, log):
    model, (seen, acted) = build("c-gpt"), window(log)
    outputs = model(seen, acted)  # causal: what comes after changes nothing
    features = model.observation_features(seen[:, -1], (seen[:, :-1], acted[:, :-1]))
    torch.testing.assert_close(features, outputs[:, 18:22].mean(1))
    model = build("m-gpt")
    torch.testing.assert_close(
        model.observation_features(seen[:, -1], (seen[:, :-1], acted[:, :-1])), model(seen, acted)[:, -2]
    )


@pytest.mark.parametrize("objective", ["c-bert", "mtm"])
def test_what_is_known_is_left_where_a_window_is_filled(objective, build, log):
    model, (seen, acted) = build(objective), window(log)
    slots = 6 if objective == "c-bert" else 2
    hidden = torch.zeros(3, 4, slots, dtype=torch.bool)
    hidden[:, 1, 0] = hidden[:, 3, -1] = True
    states, actions = model.fill(seen, acted, hidden)
    part = 1 if objective == "c-bert" else 4
    assert torch.equal(states[:, 1, part:], seen[:, 1, part:])
    assert torch.equal(states[:, [0, 2, 3]], seen[:, [0, 2, 3]])
    assert torch.equal(actions[:, :3], acted[:, :3])
    assert not torch.isclose(states[:, 1, :part], seen[:, 1, :part]).all()
    assert not torch.isclose(actions[:, 3, -1], acted[:, 3, -1]).all()


def test_kept_keys_and_values_change_no_action(build, log):
    model = build("c-gpt", size=Size(2, 32, 2, 30))  # five steps: the window shifts three times
    kept, again = Actor(model), Actor(model, cached=False)
    for states in log.observations[:26].view(13, 2, 4):
        torch.testing.assert_close(kept.act(states), again.act(states), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("value", ["discrete", "continuous"])
def test_an_action_is_what_the_window_says(value, build, log):
    model, (seen, _) = build("c-gpt", value=value), window(log)
    actor = Actor(model)
    acted = torch.stack([actor.act(seen[:, step]) for step in range(4)], 1)
    outputs = model(seen, acted).unflatten(1, (4, 6))
    told = model.expected(outputs[:, :, 3:5].flatten(1, 2).unflatten(1, (4, 2)), first=4).clamp(-1, 1)
    torch.testing.assert_close(acted, told, atol=1e-5, rtol=1e-4)
    actor.reset()
    torch.testing.assert_close(actor.act(seen[:, 0]), acted[:, 0])


def test_saved_models_are_the_same_again(two, tmp_path, log):
    model = two("c-mtm")
    model.save(tmp_path / "model")
    again = Pasta.load(tmp_path / "model")
    seen, acted = window(log)
    assert torch.equal(model(seen, acted, domain="wheel"), again(seen, acted, domain="wheel"))
    assert again.domains == ["wheel", "tricycle"]
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model/model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if name != "mask"}, tmp_path / "model/model.safetensors")
    with pytest.raises(ValueError, match="lacks the key mask"):
        Pasta.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"pasta\.json"):
        Pasta.load(tmp_path)


def test_neighbouring_bins_start_alike(build):
    table = Pasta(build().tokenizers[0], size=Size(1, 32, 2, 24)).bins.weight
    near = torch.nn.functional.cosine_similarity(table[:-1], table[1:]).mean()
    far = torch.nn.functional.cosine_similarity(table[:-16], table[16:]).mean()
    assert near > 0.7 > far + 0.4


def test_the_base_size_is_within_the_papers_bound():
    from gymnasium.spaces import Box

    from everyformer.papers.pasta import ComponentTokenizer

    model = Pasta(ComponentTokenizer(Box(-1, 1, (17,)), Box(-1, 1, (6,))), size="base")
    assert 4.5e6 < count_parameters(model) < 7e6
    assert model.context == 22
    assert SIZES["base"].layers == 6


@pytest.mark.parametrize("objective", ["c-gpt", "m-bert"])
def test_compiled_models_agree(objective, build, log):
    model, (seen, acted) = build(objective), window(log)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(seen, acted), model(seen, acted))


@pytest.mark.parametrize("objective", ["c-bert", "m-gpt"])
def test_models_train_in_half_precision(objective, build, log):
    model = build(objective).train()
    windows = Windows(*window(log))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = pretraining_loss(model, windows, generators[0])
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    wanted = pretraining_loss(copy.deepcopy(model), windows, generators[1])
    assert loss.item() == pytest.approx(wanted.item(), rel=0.05)


def test_bad_input_is_named(build, two, log):
    seen, acted = window(log)
    model, several = build("c-bert"), two()
    tokenizer = model.tokenizers[0]
    other = copy.deepcopy(tokenizer)
    other.bins = 16
    none = torch.zeros(3, 4, 5, dtype=torch.bool)
    calls = [
        (lambda: Pasta(tokenizer, size="huge"), r"unknown size 'huge'"),
        (lambda: Pasta(tokenizer, objective="gpt"), r"unknown objective 'gpt'; did you mean .*c-gpt"),
        (lambda: Pasta(tokenizer, value="both"), r"value must be 'discrete' or 'continuous', got 'both'"),
        (lambda: Pasta({}), r"tokenizer must be one or more"),
        (lambda: Pasta({"a": tokenizer, "b": other}), r"equal bins"),
        (lambda: Pasta(tokenizer, size=Size(1, 32, 2, 11)), r"size must hold two steps of 6 tokens, got 11"),
        (lambda: model(seen.repeat(1, 2, 1), acted.repeat(1, 2, 1)), r"at most 4 steps, got 8"),
        (lambda: model(seen[..., :3], acted), r"observations must have 4 components"),
        (lambda: model(seen, acted, hidden=none), r"hidden must be \(3, 4, 6\), got \(3, 4, 5\)"),
        (lambda: model(seen.log(), acted), r"observations must hold no NaN"),
        (lambda: several(seen, acted), r"domain must be one of wheel, tricycle, got None"),
        (lambda: several(seen, acted, domain="boat"), r"domain must be one of wheel, tricycle, got 'boat'"),
        (lambda: several(seen, acted, domain="tricycle"), r"observations must have 3 components"),
        (lambda: model.observation_features(seen[:, 0], missing=[4]), r"missing must be .* 0 to 3, got \[4\]"),
        (lambda: model.observation_features(seen[:, 0], missing=[-1]), r"missing must be .* got \[-1\]"),
        (lambda: model.observation_features(seen[:, 0], missing=range(4)), r"missing must be some"),
        (lambda: model.observation_features(seen[:, 0], (seen, acted)), r"at most 4 steps, got 5"),
        (lambda: build("c-gpt").fill(seen, acted, none), r"fill needs a model that learned with masks, got .*c-gpt"),
        (lambda: Actor(model), r"model must be of objective c-gpt .* got 'c-bert'"),
        (lambda: Actor(two("c-gpt")), r"domain must be one of"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    actor = Actor(build("c-gpt"))
    actor.act(seen[:, 0])
    with pytest.raises(ValueError, match="batch of 3 until reset, got 1"):
        actor.act(seen[:1, 0])
