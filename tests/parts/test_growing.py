import pytest
import torch

from everyformer.parts.growing import grown


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_what_is_added_stands_in_order(dim):
    parts = torch.randn(3, 9, 4).movedim(1, dim).split([3, 1, 1, 4], dim)
    room, length = None, 0
    for part in parts:
        room = grown(room, length, part, dim=dim)
        length += part.shape[dim]
        assert torch.equal(room.narrow(dim, 0, length), torch.cat(parts, dim).narrow(dim, 0, length))


def test_a_room_with_space_is_written_in_place():
    room = grown(torch.zeros(2, 3), 3, torch.ones(2, 1), dim=1)
    assert room.shape == (2, 8)
    assert grown(room, 4, torch.ones(2, 4), dim=1) is room
    assert room.sum() == 10


def test_gradients_find_their_way_back():
    first, second = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    (grown(first, 3, second, dim=1) * torch.arange(6)).sum().backward()
    assert torch.equal(first.grad, torch.arange(3.0).expand(2, -1))
    assert torch.equal(second.grad, torch.arange(3.0, 6.0).expand(2, -1))
