import copy

import pytest
import torch
import torch.nn.functional as F

from everyformer.papers.vit_resnas import SPACES, Space, StageSpace, SuperNet, macs
from everyformer.papers.vit_resnas.model import VARIANTS

STAGES = (
    StageSpace((16, 12, 8), (3, 2, 1), 4, (32, 24, 16), 3, (1, 2)),
    StageSpace((24, 20), (2, 1), 8, (40, 32), 2, (1,)),
)
LINEAR = Space(STAGES, num_classes=5, img_size=16, patch=4, middle=None)
CONV = Space(STAGES, num_classes=5, img_size=16, patch=4, middle=6)


def supernet(space=LINEAR, **options):
    torch.manual_seed(0)
    made = SuperNet(space, **{"examples": 2, "warm_up": 4, **options})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def exists(architecture):
    return [part[3] for part in architecture if part[0] == 1]


@pytest.mark.parametrize(
    ("name", "parameters", "published"), [("tiny", 84_814_464, 3.4976), ("small", 155_318_528, 6.2603)]
)
def test_super_networks_have_the_published_size(name, parameters, published):
    with torch.device("meta"):
        made = SuperNet(SPACES[name])
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert round(made.macs(SPACES[name].largest) / 1e9, 4) == published


def test_the_published_networks_are_in_their_spaces():
    for variant, space in (("tiny", "tiny"), ("small", "small"), ("medium", "small")):
        for stage, choices in zip(VARIANTS[f"vit_resnas_{variant}"], SPACES[space].stages, strict=True):
            assert stage.dim in choices.dims and stage.head_dim == choices.head_dim
            assert {heads for heads, _ in stage.blocks} <= set(choices.heads)
            assert {hidden for _, hidden in stage.blocks} <= set(choices.hidden)
            assert choices.blocks - len(choices.removable) <= len(stage.blocks) <= choices.blocks


@pytest.mark.parametrize("space", [LINEAR, CONV])
def test_masks_give_what_the_extracted_networks_give(space):
    made, x = supernet(space).eval(), torch.randn(6, 3, 16, 16)
    networks = [made.sample() for _ in range(3)]
    found = made(x, networks)
    for index, network in enumerate(networks):
        extracted = made.extract(network)
        assert not extracted.training
        torch.testing.assert_close(found[index::3], extracted(x)[index::3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made(x), made(x, [space.largest]), atol=1e-4, rtol=1e-4)


def test_extraction_copies_nothing():
    made = supernet()
    extracted = made.extract(LINEAR.smallest)
    for name, tensor in extracted.state_dict().items():
        assert tensor.untyped_storage().data_ptr() == made.network.state_dict()[name].untyped_storage().data_ptr()
    alone = copy.deepcopy(extracted)
    with torch.no_grad():
        alone.head.weight.zero_()
    assert made.network.head.weight.abs().sum() > 0


def test_one_pass_has_the_mean_gradient_of_separate_passes_with_linear_patches():
    made = supernet().double().train()
    x, y = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randint(5, (8,))
    networks = made.draw(4)
    F.cross_entropy(made(x, networks), y).backward()
    together = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad()
    for index, network in enumerate(networks):
        (F.cross_entropy(made(x[index::4], [network]), y[index::4]) / 4).backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name])


def test_batch_norm_couples_the_architectures_unless_its_statistics_are_frozen():
    def difference(frozen):
        made = supernet(CONV).double().train()
        made.network.patches.train(not frozen)
        x, networks = torch.randn(4, 3, 16, 16, dtype=torch.float64), made.draw(2)
        together = made(x, networks)[::2]
        return float((together - made(x[::2], networks[:1])).detach().abs().max())

    assert difference(frozen=False) > 1e-3
    assert difference(frozen=True) < 1e-9


@pytest.mark.parametrize("space", [LINEAR, CONV])
def test_sorting_keeps_the_function_and_puts_the_important_first(space):
    made, x = supernet(space).eval(), torch.randn(2, 3, 16, 16)
    before = made(x)
    made.sort_by_importance()
    torch.testing.assert_close(made(x), before, atol=1e-4, rtol=1e-4)
    block = made.network.stages[0].blocks[0]
    hidden = block.mlp.fc1.weight.abs().sum(1) + block.mlp.fc1.bias.abs() + block.mlp.fc2.weight.abs().sum(0)
    assert (hidden.diff() <= 1e-5).all()
    heads = block.attention.qkv.weight.abs().reshape(3, -1).sum(1) + block.attention.qkv.bias.abs().reshape(3, -1).sum(
        1
    )
    heads += block.attention.proj.weight.abs().sum(0).reshape(3, -1).sum(1)
    assert (heads.diff() <= 1e-5).all()


def test_the_warm_up_lets_in_more_and_more_choices():
    made = supernet()
    made.start_epoch(0)
    assert made.draw(4) == [LINEAR.largest] * 4
    made.start_epoch(2)
    widths = {network[0][1] for network in made.draw(60)}
    assert widths == {16, 12}
    made.start_epoch(4)
    assert {network[0][1] for network in made.draw(60)} == {16, 12, 8}
    again = supernet()
    again.load_state_dict(made.state_dict())
    assert int(again.epoch) == 4
    weights = copy.deepcopy(made.state_dict())
    made.start_epoch(5)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.state_dict().items() if name != "epoch")


def test_draws_hold_every_choice_equally_often():
    widths = [network[0][1] for network in supernet().draw(9)]
    assert sorted(widths) == [8] * 3 + [12] * 3 + [16] * 3


def test_a_removable_block_after_a_removed_one_is_removed_too():
    genes = [point.options[0] for point in LINEAR.points]
    removed = [0 if point[:3] == (0, 1, "exists") else gene for point, gene in zip(LINEAR.points, genes, strict=True)]
    assert exists(LINEAR.definition(removed)) == [1, 0, 0, 1, 1]
    assert exists(LINEAR.smallest) == [1, 0, 0, 1, 0]
    for _ in range(20):
        network = supernet().sample()
        assert LINEAR.definition(LINEAR.genes(network)) == network


def test_it_trains_in_bf16_and_with_two_tokens():
    made = supernet(distilled=True, drop_path_rate=0.1).train()
    x = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = made(x)
    (first.sum() + second.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    assert made.macs(LINEAR.largest) == macs(LINEAR.largest, 16, 4, tokens=2)
    low = supernet().to(torch.bfloat16).train()
    assert low(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert low.extract(LINEAR.smallest)(x.to(torch.bfloat16)).isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: supernet().train()(torch.randn(3, 3, 16, 16)), "multiple of 2 examples to share them out, got 3"),
        (lambda: supernet()(torch.randn(3, 3, 16, 16), [LINEAR.largest] * 2), "divide into 2 architectures"),
        (lambda: supernet(examples=0), "examples must be at least 1"),
        (lambda: supernet().extract(CONV.largest), r"architecture\[0\] is \(5, 16, 6\), where the space has \(0, 16\)"),
        (lambda: supernet().extract(SPACES["tiny"].largest), "must have 2 stages and 5 blocks.* got 3 and 18"),
        (
            lambda: supernet().extract(Space((STAGES[0], STAGES[1]._replace(dims=(28,))), 5, 16, 4, 3, None).largest),
            r"dim=28 in stage 1, options are \(24, 20\)",
        ),
        (
            lambda: supernet().extract(Space((STAGES[0]._replace(heads=(4,)), STAGES[1]), 5, 16, 4, 3, None).largest),
            r"heads=4 in stage 0, block 0, options are \(3, 2, 1\)",
        ),
        (
            lambda: supernet().extract(Space((STAGES[0]._replace(head_dim=5), STAGES[1]), 5, 16, 4, 3, None).largest),
            r"architecture\[1\] is",
        ),
        (lambda: Space((STAGES[0]._replace(dims=(8, 16)),)), r"stages\[0\].dims must be positive and descending"),
        (lambda: Space((STAGES[0]._replace(hidden=()),)), r"stages\[0\].hidden must be positive"),
        (lambda: Space((STAGES[0], STAGES[1]._replace(dims=(24, 12)))), r"stages\[1\].dims must not go below 16"),
        (lambda: Space((STAGES[0]._replace(removable=(3,)),)), r"stages\[0\].removable must be below 3"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
