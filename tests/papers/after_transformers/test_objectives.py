import pytest
import torch

from everyformer.papers.after_transformers import ForwardForward, info_nce


def rings(count):
    """Points inside and outside a circle: no line parts them."""
    x = torch.randn(count, 2)
    return x, (x.norm(dim=1) > 1.18).long()


def test_layers_learn_by_themselves_what_no_line_parts():
    model = ForwardForward(2, (64, 64), classes=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(*rings(128)).backward()
        optimizer.step()
    x, labels = rings(1000)
    assert (model(x).argmax(1) == labels).float().mean() > 0.8


def test_no_gradient_passes_from_one_layer_to_the_one_before():
    model, (x, labels) = ForwardForward(2, (8, 8), classes=2), rings(16)
    model.goodness(x, labels)[:, 1].sum().backward()
    assert not model.layers[0].weight.grad.any()
    assert model.layers[1].weight.grad.abs().sum() > 0


def test_contrast_is_low_where_partners_match_and_the_log_of_the_batch_where_all_are_alike():
    rows = torch.eye(8)
    assert info_nce(rows, rows, temperature=0.05) < 1e-4
    assert info_nce(torch.ones(8, 4), torch.ones(8, 4)) == pytest.approx(torch.tensor(8.0).log().item())
    assert info_nce(rows, rows.roll(1, 0), temperature=0.05) > 10


@pytest.mark.parametrize(
    ("given", "message"),
    [(((), 2), "widths must name a layer"), (((4,), 1), "classes be at least 2")],
)
def test_a_network_without_layers_or_classes_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ForwardForward(2, *given)


def test_rows_without_partners_and_wrong_temperatures_are_refused():
    with pytest.raises(ValueError, match="one and other must have the same shape"):
        info_nce(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        info_nce(torch.ones(3, 4), torch.ones(3, 4), temperature=0)
