"""Tensors whose torch.cat is put off: for everybody but our layers they are what torch.cat gives."""

import pytest
import torch

from svdquant_pack.nodes.host.model.joined import Columns, Joined


@pytest.fixture
def wide():
    return torch.randn(1, 4, 24)


def put_off(wide, **options):
    """As a single block does it: attention, and columns of a wider matrix."""
    left, right = torch.randn(1, 4, 8), wide[..., 8:].as_subclass(Columns)
    with torch.inference_mode():
        return torch.cat((left, right), **options), torch.cat((left, wide[..., 8:]), dim=2)


def test_torch_cat_is_put_off(wide):
    joined, wanted = put_off(wide, dim=2)
    assert type(joined) is Joined
    assert (joined.shape, joined.dtype, joined.device) == (wanted.shape, wanted.dtype, wanted.device)
    sides = joined.cut_at([(0, 8), (8, 24)])
    assert [type(side) for side in sides] == [torch.Tensor] * 2
    assert sides[1].data_ptr() == wide[..., 8:].data_ptr(), "the columns where they were"


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t * 2 + 1,
        lambda t: t[..., 4:12].clone(),
        lambda t: t.reshape(4, 24).T.contiguous(),
        lambda t: torch.nn.functional.linear(t, torch.ones(3, 24)),
        lambda t: torch.cat((t, t), dim=1),
        lambda t: torch.stack([t, t]).sum(0),
        lambda t: t.float().numpy().sum() * torch.ones(1),
        lambda t: t.clone().zero_(),
    ],
)
def test_anything_else_gives_what_torch_cat_would(wide, use):
    joined, wanted = put_off(wide, dim=-1)
    result = use(joined)
    assert type(result) is torch.Tensor
    assert torch.equal(result, use(wanted))


def test_what_is_written_to_stays_written(wide):
    joined, wanted = put_off(wide, dim=2)
    joined.add_(1)
    assert torch.equal(joined * 1, wanted + 1)
    assert type(joined.cut_at([(0, 8), (8, 24)])) is torch.Tensor


def test_other_cuts_take_the_whole(wide):
    joined, wanted = put_off(wide, dim=2)
    assert torch.equal(joined.cut_at([(0, 24)]), wanted)
    assert torch.equal(joined.cut_at([(0, 12), (12, 24)]), wanted)


@pytest.mark.parametrize("dim", [0, 1])
def test_other_directions_are_joined_at_once(wide, dim):
    columns = wide.as_subclass(Columns)
    with torch.inference_mode():
        result = torch.cat((wide, columns), dim)
    assert type(result) is torch.Tensor and torch.equal(result, torch.cat((wide, wide), dim))


def test_where_gradients_are_wanted_nothing_is_put_off():
    with torch.inference_mode(False), torch.enable_grad():
        wide = torch.randn(1, 4, 24, requires_grad=True)
        result = torch.cat((wide, wide.detach().as_subclass(Columns)), 2)
        result.sum().backward()
    assert type(result) is torch.Tensor
    assert torch.equal(wide.grad, torch.ones_like(wide))


def test_other_ways_to_call_it_are_left_to_torch(wide):
    columns, out = wide.as_subclass(Columns), torch.empty(1, 4, 48)
    with torch.inference_mode():
        for result in (torch.cat((wide, columns), axis=2), torch.cat((wide, columns), dim=2, out=out)):
            assert type(result) is torch.Tensor and torch.equal(result, torch.cat((wide, wide), 2))


def test_mixed_types_are_left_to_torch(wide):
    with torch.inference_mode():
        result = torch.cat((wide.double(), wide.as_subclass(Columns)), 2)
    assert type(result) is torch.Tensor and result.dtype == torch.float64


def test_columns_are_an_ordinary_tensor_otherwise(wide):
    columns = wide.as_subclass(Columns)
    assert type(columns + 1) is torch.Tensor and torch.equal(columns + 1, wide + 1)
    assert type(columns[..., :3]) is torch.Tensor
