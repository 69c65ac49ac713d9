"""Wide residual networks, and views of images: one logical step equals the loop over records."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainer.batches.grouped_records import Views, average_row_losses
from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.models.wide_resnet import (
    PAD,
    StandardizedConv2d,
    random_crop_and_flip,
    wide_resnet,
)
from dpaudit.trainer.tasks import cross_entropies
from dpaudit.vocabulary.errors import InvalidArgument

CLIP = 0.05


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return wide_resnet((3, 8, 8), 4, depth=10, width=1)


def images(records: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(records, 3, 8, 8), torch.arange(records) % 4


def test_the_network_has_the_published_size() -> None:
    model = wide_resnet((3, 32, 32), 10)
    convolutions = [m for m in model.modules() if isinstance(m, StandardizedConv2d)]
    assert len(convolutions) == 16  # 13 in depth, with the linear layer 14, and 3 shortcuts
    assert 2.7e6 < sum(p.numel() for p in model.parameters()) < 2.8e6
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_filters_have_mean_zero_and_one_variance() -> None:
    torch.manual_seed(0)
    layer = StandardizedConv2d(3, 5, 3)
    with torch.no_grad():
        layer.weight.mul_(7).add_(2)
    one = torch.zeros(1, 3, 3, 3)
    filters = []
    for n in range(27):  # unit inputs give back the filters' entries
        unit = one.clone()
        unit.view(-1)[n] = 1
        filters.append(layer(unit)[0, :, 1, 1] - layer(one)[0, :, 1, 1])
    entries = torch.stack(filters, 1)
    assert torch.allclose(entries.mean(1), torch.zeros(5), atol=1e-6)
    assert torch.allclose(entries.var(1) * 27, torch.ones(5), rtol=1e-4)


def test_a_step_on_views_equals_the_loop_over_records() -> None:
    model, batch = tiny(), images(3)
    torch.manual_seed(2)
    groups = Views(random_crop_and_flip, 4)(batch)
    engine = Engine(model, average_row_losses(cross_entropies))
    found = engine.clipped_sum(groups, Flat(CLIP)).sums
    parameters = dict(model.named_parameters())
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for record in range(3):
        views, labels = groups.rows[0][record], groups.rows[1][record]
        losses = [
            cross_entropies(model, (view[None], label[None])).sum()
            for view, label in zip(views, labels, strict=True)
        ]
        mean = torch.stack(losses).mean()
        own = torch.autograd.grad(mean, list(parameters.values()))
        norm = torch.sqrt(sum((part.square().sum() for part in own), torch.zeros(())))
        assert norm > CLIP
        for name, part in zip(expected, own, strict=True):
            expected[name] += part * (CLIP / norm)
    gap = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert gap < 1e-4 * CLIP


def test_a_view_is_a_shift_or_its_mirror_image() -> None:
    height, width = 12, 9
    plane = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    batch = (torch.cat([plane, plane + 1000]).repeat(100, 2, 1, 1), torch.zeros(200))
    torch.manual_seed(0)
    views, labels = random_crop_and_flip(batch)
    assert views.shape == batch[0].shape
    padded = nn.functional.pad(plane, (PAD, PAD, PAD, PAD), mode="reflect")[0, 0]
    size = 2 * PAD + 1
    allowed = set()
    for down in range(size):
        for right in range(size):
            part = padded[down : down + height, right : right + width]
            allowed |= {tuple(part.flatten().tolist()), tuple(part.flip(1).flatten().tolist())}
    shown = set()
    for n, view in enumerate(views):
        first, second = (channel - 1000 * (n % 2) for channel in view)
        assert torch.equal(first, second)  # every channel moves alike
        shown.add(tuple(first.flatten().tolist()))
    assert shown <= allowed
    assert len(shown) > 50
    assert torch.equal(labels, batch[1])


def test_gray_images_keep_their_shape() -> None:
    found, _ = random_crop_and_flip((torch.rand(5, 10, 10), torch.zeros(5)))
    assert found.shape == (5, 10, 10)


@pytest.mark.parametrize("shape", [(28, 28), (3, 6, 6), (12,)])
def test_records_that_are_no_images_with_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="wrn-16-4"):
        wide_resnet(shape, 2)
