import copy

import pytest
import torch
from gymnasium.spaces import Box

from everyformer.papers.pasta import TD3BC, Features, PastaFeaturesExtractor, Policy, adapted
from everyformer.papers.pasta.downstream import trainable


def halfcheetah():
    from everyformer.papers.pasta import ComponentTokenizer, Pasta

    return Pasta(ComponentTokenizer(Box(-1, 1, (17,)), Box(-1, 1, (6,))), size="base", objective="c-bert")


def test_adapters_of_the_base_size_train_fewer_than_ten_thousand():
    model = halfcheetah()
    assert trainable(adapted(model, "ia3")) == 6 * (256 + 256 + 1024) == 9216
    assert trainable(adapted(model, "lora")) == 6 * 2 * 2 * 256
    assert trainable(adapted(model, "frozen")) == 0
    assert trainable(adapted(model, "full")) == trainable(model)


@pytest.mark.parametrize("tuning", ["ia3", "lora"])
def test_an_adapter_begins_as_the_model_and_is_all_that_learns(tuning, build, log):
    model = build("c-bert")
    before = copy.deepcopy(model.state_dict())
    network = adapted(model, tuning)
    features = Features(network)
    states = log.observations[:6]
    torch.testing.assert_close(features(states), model.observation_features(states))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        features(states).square().mean().backward()
        optimizer.step()
    assert not torch.allclose(features(states), model.observation_features(states))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    fixed = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert len(fixed) == len(dict(model.named_parameters()))


def test_bad_tunings_are_named(build):
    with pytest.raises(ValueError, match=r"tuning 'ia3' must train fewer than 100 parameters, got 384"):
        adapted(build(), "ia3", bound=100)
    with pytest.raises(ValueError, match=r"tuning must be frozen, ia3, lora or full, got 'bits'"):
        adapted(build(), "bits")


def test_policies_stay_within_the_actions_space(build, log):
    low, high = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])
    policy = Policy(Features(build("c-bert")), 32, low, high, hidden=16)
    assert (policy(log.observations).std(0) > 0).all()
    policy.head[-1].weight.data *= 100
    acted = policy(log.observations)
    assert acted.shape == (240, 2)
    assert (acted >= low).all()
    assert (acted <= high).all()


def learned(alpha, reward_of):
    """TD3 with cloning on one-step tasks whose data act at random."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    learner = TD3BC(2, 1, hidden=32, alpha=alpha)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], 3e-3)
    for _ in range(250):
        state, action = (2 * torch.rand(64, size, generator=generator) - 1 for size in (2, 1))
        optimizer.zero_grad()
        ended = torch.ones(64, dtype=torch.bool)
        learner.loss(state, action, reward_of(state, action), state, ended, torch.zeros(64, 1)).backward()
        optimizer.step()
        learner.follow(0.05)
    return learner, 2 * torch.rand(256, 2, generator=generator) - 1


def test_offline_learning_prefers_what_is_rewarded_and_cloning_does_not():
    def reward(state, action):
        return -(action[:, 0] - 0.7 * state[:, 0]).square() * 4

    learner, states = learned(20.0, reward)
    error = (learner.actor(states).tanh()[:, 0] - 0.7 * states[:, 0]).square().mean()
    clone, _ = learned(0.0, reward)
    baseline = (clone.actor(states).tanh()[:, 0] - 0.7 * states[:, 0]).square().mean()
    assert error < 0.3 * baseline


def test_the_losses_of_actor_and_critics_do_not_mix():
    learner = TD3BC(3, 2, hidden=8)
    state, action, noise = torch.randn(16, 3), torch.rand(16, 2), torch.randn(16, 2)
    ended = torch.zeros(16, dtype=torch.bool)

    def gradients(reward):
        learner.zero_grad()
        learner.loss(state, action, reward, state, ended, noise).backward()
        return [p.grad.clone() for p in learner.actor.parameters()], [
            p.grad.clone() for p in learner.critics.parameters()
        ]

    first, second = gradients(torch.zeros(16)), gradients(torch.ones(16))
    assert all(torch.equal(one, two) for one, two in zip(first[0], second[0], strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first[1], second[1], strict=True))


def test_targets_follow_by_a_share():
    learner = TD3BC(3, 2, hidden=8)
    before = [p.clone() for p in learner.targets.parameters()]
    for p in learner.actor.parameters():
        p.data += 1.0
    learner.follow(0.25)
    moved = list(learner.targets.parameters())
    actor = len(list(learner.actor.parameters()))
    assert all(torch.allclose(two, one + 0.25) for one, two in zip(before[:actor], moved[:actor], strict=True))
    assert all(torch.equal(one, two) for one, two in zip(before[actor:], moved[actor:], strict=True))
    assert not any(p.requires_grad for p in moved)


@pytest.mark.parametrize("tuning", ["frozen", "ia3"])
def test_a_policy_of_stable_baselines_learns_on_the_features(tuning, build):
    import gymnasium
    from stable_baselines3 import PPO

    class Reach(gymnasium.Env):
        observation_space, action_space = Box(-2, 2, (4,)), Box(-1, 1, (2,))

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.state = self.np_random.uniform(-1, 1, 4).astype("f")
            return self.state, {}

        def step(self, action):
            return self.state, -float(((action - self.state[:2]) ** 2).sum()), True, False, {}

    kwargs = {"model": build("c-bert"), "tuning": tuning}
    options = {"features_extractor_class": PastaFeaturesExtractor, "features_extractor_kwargs": kwargs, "net_arch": [8]}
    learner = PPO(
        "MlpPolicy", Reach(), n_steps=32, batch_size=32, n_epochs=1, policy_kwargs=options, device="cpu", seed=0
    )
    before = copy.deepcopy(learner.policy.state_dict())
    learner.learn(64)
    changed = [name for name, tensor in learner.policy.state_dict().items() if not torch.equal(tensor, before[name])]
    inside = [name for name in changed if "features_extractor" in name]
    assert len(changed) > len(inside)
    assert all("ia3" in name for name in inside)
    assert bool(inside) == (tuning == "ia3")


def test_an_extractor_of_another_robot_is_refused(build):
    with pytest.raises(ValueError, match=r"observation_space must be \(4,\), got \(5,\)"):
        PastaFeaturesExtractor(Box(-1, 1, (5,)), build())
