import pytest
import torch

from everyformer import compressors
from everyformer.papers.inference_survey import SCHEMES, Point, Scheme, best_within, compressed, curve, frontier
from everyformer.parts.compress import pruning
from everyformer.parts.language import LanguageModel


def model():
    torch.manual_seed(0)
    return LanguageModel(vocabulary=32, dim=64, depth=4, heads=2).eval()


def test_schemes_have_names_of_their_own_and_steps_that_follow_each_other():
    assert len({scheme.name for scheme in SCHEMES}) == len(SCHEMES) == 14
    assert len({scheme.family for scheme in SCHEMES}) == 5
    for scheme in SCHEMES:
        for name, _ in scheme.steps:
            assert name in compressors.cards()
    assert {scheme.name for scheme in SCHEMES if not scheme.heals} == {"int8", "int4", "NVFP4"}


def test_a_curve_leaves_the_model_as_it_was_and_heals_what_can_be():
    whole, healed = model(), []
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    chosen = [scheme for scheme in SCHEMES if scheme.name in ("NVFP4", "half of the weights", "half of the heads")]
    points = curve(
        whole, lambda some: pruning.sparsity(some) if some is not whole else 0.0, schemes=chosen[1:],
        heal=lambda _, scheme: healed.append(scheme.name),
    )  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())
    assert healed == ["half of the weights", "half of the heads"]
    assert points[0].scheme is None and points[0].model is whole
    assert points[1].quality == pytest.approx(0.5, abs=0.01)
    assert all(point.size < points[0].size for point in points[1:])
    assert compressed(whole, chosen[0]) is not whole


def point(size, quality):
    return Point(Scheme("a", "b", ()), size, quality, torch.nn.Identity())


def test_the_frontier_and_the_best_of_a_size():
    points = [point(30, 0.9), point(10, 0.5), point(20, 0.4), point(20, 0.7), point(40, 0.8)]
    assert [(one.size, one.quality) for one in frontier(points)] == [(10, 0.5), (20, 0.7), (30, 0.9)]
    assert best_within(points, 25).quality == 0.7
    with pytest.raises(ValueError, match="size must be at least 10 bytes, the smallest of the points, got 9"):
        best_within(points, 9)
