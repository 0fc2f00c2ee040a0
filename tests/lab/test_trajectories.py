import gymnasium
import numpy as np
import pytest
import torch

from everyformer.lab import data, trajectories
from everyformer.lab.trajectories import (
    Domain,
    Gravity,
    SensorFailure,
    collected,
    evaluate,
    joined,
    make,
    policies,
    read_minari,
    rollout,
    write_minari,
)

SMALL = Domain("Hopper-v5", "PPO", steps=512, stages=2, episodes=4, horizon=12, hidden=8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "cache", lambda: folder)
        patch.setitem(trajectories._OPTIONS, "PPO", {"n_steps": 128, "batch_size": 64, "n_epochs": 1})
        yield folder


@pytest.fixture(scope="module")
def stages(cache):
    return collected(SMALL)


def still(seen):
    return torch.zeros(len(seen), 3)


def sway(seen):
    return seen[:, :3].sin()


def hoppers(count, wrap=lambda env: env, horizon=12):
    return [wrap(make("Hopper-v5", horizon)) for _ in range(count)]


def test_every_stage_leaves_its_episodes(stages):
    assert len(stages) == 2
    for one in stages:
        assert len(one) == 4
        assert one.observations.shape == one.following.shape == (len(one.rewards), 11)
        assert one.actions.shape == (len(one.rewards), 3)
    assert not torch.equal(stages[0].actions[:5], stages[1].actions[:5])


def test_policies_and_trajectories_are_made_once_and_the_same_again(stages, cache, tmp_path, monkeypatch):
    weights = policies(SMALL)
    assert all(len(tensor) == 2 for tensor in weights.values())
    assert any(not torch.equal(tensor[0], tensor[1]) for tensor in weights.values())
    with monkeypatch.context() as patch:
        patch.setattr(trajectories, "_episodes", None)  # no simulation any more
        assert torch.equal(collected(SMALL)[1].actions, stages[1].actions)
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    assert torch.equal(collected(SMALL)[1].actions, stages[1].actions)


def test_nothing_but_plain_tensors_is_kept(stages, cache):
    kept = [path for path in (cache / "simulated").rglob("*") if path.is_file()]
    assert kept
    assert {path.suffix for path in kept} == {".safetensors"}


def test_random_numbers_of_others_are_left_alone(cache):
    torch.manual_seed(3)
    np.random.seed(3)
    wanted = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    policies(Domain("Hopper-v5", "PPO", steps=128, stages=1, episodes=2, horizon=4, hidden=4))
    assert (torch.rand(1), np.random.rand()) == wanted


def test_episodes_follow_their_actions():
    found = rollout(hoppers(2), sway, [5, 6])
    first, second = list(found)
    assert first.observations.shape == (len(first.actions) + 1, 11)
    inside = found.episode[1:] == found.episode[:-1]
    assert torch.equal(found.following[:-1][inside], found.observations[1:][inside])
    assert not torch.equal(first.observations[0], second.observations[0])
    alone = rollout(hoppers(1), sway, [6])
    assert torch.equal(alone.rewards, second.rewards)
    assert found.returns()[1] == pytest.approx(float(alone.rewards.sum()))


def test_an_episode_that_ends_by_itself_is_marked():
    found = rollout(hoppers(1, horizon=400), lambda seen: torch.ones(1, 3), [0])
    assert len(found.rewards) < 400
    assert found.terminated.nonzero().flatten().tolist() == [len(found.rewards) - 1]


def test_some_episodes_and_several_sets(stages):
    both = joined(stages)
    assert len(both) == 8
    again = both.chosen([7, 0])
    assert again.returns().tolist() == [float(both.returns()[7]), float(both.returns()[0])]
    assert torch.equal(joined([again.chosen([0]), again.chosen([1])]).episode, again.episode)


def test_minari_and_back(stages, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    written = write_minari(stages[1], "pasta/hopper-v0", env="Hopper-v5", folder=tmp_path)
    assert written.total_episodes == 4
    read = read_minari("pasta/hopper-v0", tmp_path)
    for name in ("observations", "actions", "rewards", "following", "terminated", "episode"):
        torch.testing.assert_close(getattr(read, name), getattr(stages[1], name))
    import os

    assert os.environ["MINARI_DATASETS_PATH"] == "elsewhere"
    assert not (tmp_path.parent / "elsewhere").exists()
    with pytest.raises(ValueError, match=r"pasta/walker-v0"):
        read_minari("pasta/walker-v0", tmp_path)


@pytest.mark.parametrize("mode", ["constant", "hold", "noise"])
def test_a_failed_sensor_shows_what_its_mode_says(mode):
    env, whole = SensorFailure(make("Hopper-v5"), 4, mode, 0.5), make("Hopper-v5")
    seen, truth = env.reset(seed=1)[0], whole.reset(seed=1)[0]
    shown = [seen[4]]
    for _ in range(5):
        observed, true = (one.step(np.full(3, 0.3))[0] for one in (env, whole))
        shown.append(observed[4])
        np.testing.assert_allclose(np.delete(observed, 4), np.delete(true, 4))
        assert observed[4] != true[4]
    assert np.ptp(shown) > 0 if mode == "noise" else set(shown) == {0.5 if mode == "constant" else truth[4]}


def test_a_hopper_falls_faster_where_gravity_is_stronger():
    def fall(factor):
        env = Gravity(make("Hopper-v5"), factor)
        env.reset(seed=0)
        for _ in range(8):
            height = env.step(np.zeros(3))[0][0]
        return height

    assert fall(2.0) < fall(1.0) < fall(0.2)
    env = make("Hopper-v5")
    assert Gravity(env, 1.0).unwrapped.model.opt.gravity[2] == pytest.approx(-9.81)


def test_policies_are_tested_in_wrapped_environments():
    def wrap(env):
        return SensorFailure(env, 0, value=9.0)

    seen = []

    def act(states):
        seen.append(states[:, 0])
        return still(states)

    found = evaluate("Hopper-v5", act, episodes=2, seed=3, horizon=5, wrap=wrap)
    assert found.shape == (2,)
    assert torch.equal(torch.stack(seen), torch.full((5, 2), 9.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("Unicorn-v0"), r"env must be .*'Unicorn-v0'"),
        (lambda: make("CartPole-v1"), r"env must have flat Box spaces, got 'CartPole-v1'"),
        (lambda: SensorFailure(make("Hopper-v5"), 11), r"index must be 0 to 10, got 11"),
        (lambda: SensorFailure(make("Hopper-v5"), -1), r"index must be 0 to 10, got -1"),
        (lambda: SensorFailure(make("Hopper-v5"), 0, "off"), r"mode must be one of .*got 'off'"),
        (lambda: SensorFailure(gymnasium.make("Blackjack-v1"), 0), r"flat Box"),
        (lambda: Gravity(make("Hopper-v5"), 0.0), r"factor must be above 0, got 0"),
        (lambda: collected(Domain("Unicorn-v0", "PPO", 1, 1, 2, 1)), r"Unicorn-v0"),
        (lambda: collected(Domain("Hopper-v5", "PPO", 1, 1, 3, 1)), r"even number of episodes, got 1 and 3"),
        (lambda: rollout([], still, []), r"seeds must be one for each"),
        (lambda: rollout(hoppers(1), still, [1, 2]), r"got 2 for 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_gravity_needs_mujoco():
    with pytest.raises(TypeError, match="MuJoCo"):
        Gravity(gymnasium.make("CartPole-v1"), 0.5)


def test_mujoco_leaves_no_log_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("HalfCheetah-v5").close()
    assert not list(tmp_path.iterdir())
