import copy

import pytest
import torch

from everyformer import compressors
from everyformer.parts.compress import anatomy, pruning, storage
from everyformer.parts.language import LanguageModel


def model():
    torch.manual_seed(0)
    return LanguageModel(vocabulary=32, dim=32, depth=4, heads=4).eval()


TOKENS = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(0))


def test_every_card_names_a_function_and_a_stage():
    for name, card in compressors.cards().items():
        assert card.name == name and callable(card.function) and card.stage in compressors.STAGES


@pytest.mark.parametrize("name", [name for name in compressors.cards() if name not in ("merging", "semi_structured")])
def test_each_makes_the_file_smaller_as_its_card_says(name):
    whole = model()
    options = {"int4": {"group": 16}}.get(name, {})
    made = compressors.apply(copy.deepcopy(whole), name, **options)
    assert made(TOKENS).isfinite().all()
    assert compressors.cards()[name].file
    assert len(storage.to_bytes(made)) < 0.95 * len(storage.to_bytes(whole))


def test_a_composition_is_done_in_order_and_heals_before_the_bits():
    seen = []

    def heal(half):
        seen.append([type(layer.weight).__name__ for layer in anatomy.linears(half).values()])
        with torch.no_grad():
            for layer in anatomy.linears(half).values():
                layer.weight_orig.add_(1.0)  # training moves what is masked too

    steps = ["blocks", ("heads", {"ratio": 0.5}), ("magnitude", {"sparsity": 0.5}), "int8"]
    made = compressors.compose(model(), steps, heal=heal)
    assert len(seen) == 1 and len(anatomy.blocks(made)[1]) == 3
    layers = anatomy.linears(made).values()
    assert {type(layer._parameters["weight"].data).__name__ for layer in layers} == {"Int8Tensor"}
    assert pruning.sparsity(made) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["int8", "magnitude"], r"steps must have magnitude \(zeros\) before int8 \(bits\)"),
        (["magnitude", "low_rank"], r"low_rank \(factors\) before magnitude"),
        (["int8", "nvfp4"], "one method for bits at most, got int8, nvfp4"),
        (["int9"], "did you mean int"),
        ([("magnitude", {"sparsity": 1.0})], "sparsity must be from 0"),
    ],
)
def test_compositions_that_cannot_be_are_refused_before_anything_changes(steps, message):
    whole = model()
    before = copy.deepcopy(whole.state_dict())
    with pytest.raises(ValueError, match=message):
        compressors.compose(whole, steps)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


def test_backbones_of_the_library_can_be_compressed():
    from everyformer.papers.favit.model import FaViT

    torch.manual_seed(0)
    backbone = FaViT(num_classes=4, depths=(1, 1, 1, 1)).eval()
    pictures = torch.randn(1, 3, 64, 64)
    assert compressors.compose(backbone, ["magnitude"])(pictures).isfinite().all()
    assert pruning.sparsity(backbone) == pytest.approx(0.5, abs=0.02)
