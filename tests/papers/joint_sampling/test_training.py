import pytest
import torch
import torch.nn.functional as F

from everyformer.papers.joint_sampling import JointSampler, MaskedDiffusionLM, train_sampler, trajectories
from everyformer.papers.joint_sampling.training import examples, sampler_loss


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def test_trajectories_are_the_base_one_token_at_a_time(base):
    prompts = torch.tensor([[1, 2], [3, 4], [5, 6]])
    pool = trajectories(base, length=7, prompts=prompts, generator=seeded(), batch=2)
    assert torch.equal(pool.tokens[:, :2], prompts)
    assert torch.equal(pool.rank.sort(1).values, torch.tensor([-1, -1, 0, 1, 2, 3, 4]).expand(3, -1))
    assert trajectories(base, length=7, count=5, batch=2).tokens.shape == (5, 7)


def test_examples_are_two_moments_of_one_trajectory(base):
    pool = trajectories(base, length=9, count=6, generator=seeded())
    before, after = examples(pool, 10, 4, 500, seeded())
    first, second = (before != 10).sum(1), (after != 10).sum(1)
    assert set((second - first).tolist()) == {1, 2, 3}
    assert int(first.min()) == 0 and int(second.max()) == 8  # something is always left to predict
    seen = before != 10
    assert torch.equal(before[seen], after[seen])
    assert all(any(torch.equal(row[row != 10], tokens[row != 10]) for tokens in pool.tokens) for row in after[:20])


def test_the_loss_is_the_divergence_from_the_base_that_sees_the_tokens(base, sampler):
    before = torch.tensor([[10, 10, 10, 2], [10, 10, 1, 10]])
    after = torch.tensor([[10, 10, 3, 2], [5, 10, 1, 10]])
    teacher = base(after).log_softmax(-1)
    student = base.logits(sampler(base.states(before), base.embed(after))).log_softmax(-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    expected = (divergence[0, :2].mean() + divergence[1, [1, 3]].mean()) / 2
    torch.testing.assert_close(sampler_loss(base, sampler, before, after), expected)


def test_training_lowers_the_divergence_and_leaves_the_base_alone(base):
    kept = {key: value.clone() for key, value in base.state_dict().items()}
    base.requires_grad_(True)
    sampler = JointSampler.from_base(base)
    pool = trajectories(base, length=8, count=64, generator=seeded(5))
    batch = examples(pool, 10, 4, 256, seeded(6))
    start = float(sampler_loss(base, sampler, *batch).detach())
    losses = train_sampler(
        base,
        sampler,
        length=8,
        tokens_per_pass=4,
        steps=150,
        batch=32,
        rate=3e-3,
        pool=64,
        renew=50,
        generator=seeded(),
    )
    assert len(losses) == 150
    assert float(sampler_loss(base, sampler, *batch).detach()) < 0.9 * start
    assert all(torch.equal(base.state_dict()[key], value) for key, value in kept.items())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_what_cannot_be_trained_is_named(base, sampler):
    for name in ("steps", "batch", "pool", "renew"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            train_sampler(base, sampler, length=8, **{name: 0})
    with pytest.raises(ValueError, match="tokens_per_pass must be at least 2 for a sampler to be trained, got 1"):
        train_sampler(base, sampler, length=8, tokens_per_pass=1, steps=1, pool=2)
    with pytest.raises(ValueError, match="pool must hold trajectories of at least 2 tokens, got 1"):
        train_sampler(base, sampler, length=1, steps=1, pool=2)
    other = MaskedDiffusionLM(vocabulary=11, dim=16, depth=1, heads=2, mask_token=10)
    with pytest.raises(ValueError, match="its dim is 32, the base's 16"):
        train_sampler(other, sampler, length=8)
