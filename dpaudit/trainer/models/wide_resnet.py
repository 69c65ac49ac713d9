"""Wide residual networks for private training: group normalization, standardized weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpaudit.vocabulary.errors import InvalidArgument

GROUPS = 16
"""Groups of channels of every normalization."""

STAGE_WIDTHS = (16, 32, 64)
"""Channels of the three stages, before they are multiplied by the width."""

VARIANCE_FLOOR = 1e-4
"""Least variance of a filter's weights, before it is divided by."""

PAD = 4
"""Pixels by which an augmented view is shifted at most, in each direction."""


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0, a fixed variance and a trained gain.

    References:
        Qiao et al. (2019), arXiv:1903.10520; Brock et al. (2021), arXiv:2101.08692, equation 1.
    """

    def __init__(self, channels: int, filters: int, side: int, stride: int = 1) -> None:
        super().__init__(channels, filters, side, stride, padding=side // 2)
        self.gain = nn.Parameter(torch.ones(filters, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution with standardized weights.

        Args:
            input: Shape ``(records, channels, height, width)``.

        Returns:
            Shape ``(records, filters, ...)``.
        """
        inputs = self.weight[0].numel()
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        scale = (variance * inputs).clamp(min=VARIANCE_FLOOR).rsqrt()
        weight = (self.weight - mean) * scale * self.gain
        found: Tensor = self._conv_forward(input, weight, self.bias)
        return found


class _ResidualBlock(nn.Module):
    """Two normalized, activated convolutions, added to their input."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.before, self.between = _norm(channels), _norm(filters)
        self.first = StandardizedConv2d(channels, filters, 3, stride)
        self.second = StandardizedConv2d(filters, filters, 3)
        same = channels == filters and stride == 1
        self.shortcut = None if same else StandardizedConv2d(channels, filters, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        active = self.before(x).relu()
        found: Tensor = self.second(self.between(self.first(active)).relu())
        return found + (x if self.shortcut is None else self.shortcut(active))


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(GROUPS, channels), channels)


def wide_resnet(
    shape: tuple[int, ...], classes: int, *, depth: int = 16, width: int = 4
) -> nn.Module:
    """Return a wide residual network.

    Args:
        shape: Shape of one record: ``(channels, height, width)``, sides of at least 8 pixels.
        classes: Number of classes.
        depth: Number of convolutions in depth, 6 n + 4.
        width: Factor of the channels of every stage.

    Returns:
        The network, for features in [0, 1].

    Raises:
        InvalidArgument: If records are not images with channels, or are too small.

    References:
        Zagoruyko & Komodakis (2016), arXiv:1605.07146; De et al. (2022), arXiv:2204.13650,
        section 3.1 (group normalization and weight standardization).
    """
    if len(shape) != 3 or min(shape[1:]) < 8:
        allowed = f"for records (channels, height, width) of 8 or more pixels, not {shape}"
        raise InvalidArgument("model", "wrn-16-4", allowed)
    widths = [one * width for one in STAGE_WIDTHS]
    layers: list[nn.Module] = [StandardizedConv2d(shape[0], STAGE_WIDTHS[0], 3)]
    channels = STAGE_WIDTHS[0]
    for stage, filters in enumerate(widths):
        for block in range((depth - 4) // 6):
            stride = 2 if stage and not block else 1
            layers.append(_ResidualBlock(channels, filters, stride))
            channels = filters
    layers += [_norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, classes))


def random_crop_and_flip(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return each image shifted by up to 4 pixels and mirrored at random.

    Every record has its own draws, from torch's generator.

    Args:
        batch: Images and labels, of shapes ``(records, ..., height, width)`` and ``(records,)``.

    Returns:
        Changed images of the same shape, and the labels.
    """
    images, labels = batch
    records, height, width = len(images), *images.shape[-2:]
    planes = images.reshape(records, -1, height, width)
    padded = nn.functional.pad(planes, (PAD, PAD, PAD, PAD), mode="reflect")
    down, right = torch.randint(2 * PAD + 1, (2, records))
    mirrored = torch.rand(records) < 0.5
    rows = down[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(records, width)
    columns = right[:, None] + torch.where(mirrored[:, None], columns.flip(1), columns)
    record = torch.arange(records)
    # Advanced indices at both ends of a slice put the plane last.
    found = padded[record[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return found.movedim(-1, 1).reshape(images.shape), labels
