"""Scattering transform: fixed image features, stable to small shifts and deformations.

Wavelets, a modulus, wavelets again, a modulus, and local averages. Nothing is learned and no
other record is used, so the features release nothing by themselves.

References: Bruna & Mallat (2013), arXiv:1203.1513 (the transform); Oyallon & Mallat (2015),
arXiv:1412.8659 (two scales, two orders, eight angles); Tramer & Boneh (2021),
arXiv:2011.11660 (private linear models on them).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from dpaudit.vocabulary.errors import InvalidArgument

SCALES, ANGLES = 2, 8
STRIDE = 2**SCALES  # width and distance of the averages, in pixels
SCATTERING_CHANNELS = (
    1 + SCALES * ANGLES + math.comb(SCALES, 2) * ANGLES**2
)  # 1, 16 and 64 channels of orders 0, 1 and 2
MIN_SIDE = 2 * STRIDE  # reflection padding must be narrower than the image

# Morlet wavelets of Bruna & Mallat: spread and frequency of the finest one, and the ratio of the
# envelope's width along the wave to its width across.
SPREAD, FREQUENCY, ASPECT = 0.8, 0.75 * math.pi, 4 / ANGLES
ALIASES = 2  # periods of the spectrum on each side; the next is below float32's resolution
IMAGES_AT_ONCE = 16  # images per chunk, so that intermediate results fit the processor's cache


class ScatteringTransform(nn.Module):
    """Maps images ``(records, [channels,] height, width)`` to local averages of both orders.

    The output has shape ``(records, 81 * channels, ceil(height / 4), ceil(width / 4))``. Row i
    depends on image i alone. There are no parameters, and nothing to save.

    Args:
        shape: Shape of one image: ``(height, width)`` or ``(channels, height, width)``.

    Raises:
        InvalidArgument: If records of this shape are not images, or are too small.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) not in {2, 3} or min(shape[-2:]) < MIN_SIDE:
            allowed = f"for images of at least {MIN_SIDE} x {MIN_SIDE} pixels, not {shape}"
            raise InvalidArgument("model", "scattering", allowed)
        self._planes = shape[0] if len(shape) == 3 else 1
        self.sides = tuple(-(-side // STRIDE) for side in shape[-2:])
        # At least STRIDE pixels around the image, and a multiple of STRIDE in all.
        height, width = (STRIDE * (side + 2) for side in self.sides)
        self.margins = tuple(
            margin
            for padded, side in ((width, shape[-1]), (height, shape[-2]))
            for margin in (STRIDE, padded - side - STRIDE)
        )
        for scale in range(SCALES):
            self._keep(f"wavelets_{scale}", morlet_spectra(height, width, scale))
            rows, columns = (low_pass_matrix(side, 2**scale) for side in (height, width))
            self._keep(f"rows_{scale}", rows)
            self._keep(f"columns_{scale}", columns.T.contiguous())

    def _keep(self, name: str, values: Tensor) -> None:
        """Register a float32 buffer that is not saved."""
        self.register_buffer(name, values.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: Shape ``(records, *shape)``.

        Returns:
            Shape ``(records, 81 * channels, ceil(height / 4), ceil(width / 4))``.
        """
        if len(images) == 0:  # torch.fft refuses an empty batch
            return images.new_zeros(0, SCATTERING_CHANNELS * self._planes, *self.sides)
        return torch.cat([self._transformed(some) for some in torch.split(images, IMAGES_AT_ONCE)])

    def _transformed(self, images: Tensor) -> Tensor:
        """Return the features of one chunk of images: orders 0, 1 and 2, in this order."""
        planes = images.reshape(len(images), self._planes, *images.shape[-2:])
        padded = nn.functional.pad(planes, self.margins, mode="reflect").unsqueeze(2)
        spectrum = torch.fft.fft2(padded)
        fine, coarse = (self._moduli(spectrum, scale) for scale in range(SCALES))
        # Second order: the moduli of the fine wavelets, filtered by the coarse ones.
        again = self._moduli(torch.fft.fft2(fine).unsqueeze(3), 1).flatten(2, 3)
        found = [
            self._averaged(padded, 0),
            self._averaged(fine, 0),
            self._averaged(coarse, 1),
            self._averaged(again, 1),
        ]
        return torch.cat(found, dim=2).flatten(1, 2)

    def _moduli(self, spectrum: Tensor, scale: int) -> Tensor:
        """Return |x * psi| for every angle, on every ``2**scale``-th pixel."""
        filtered = spectrum * self.get_buffer(f"wavelets_{scale}")
        for side in (-2, -1):
            # Subsampling pixels adds the parts of the spectrum (aliasing). Adding them one by one
            # is many times faster than torch's sum along a dimension.
            filtered = functools.reduce(torch.add, filtered.chunk(2**scale, dim=side))
        squares: Tensor = torch.view_as_real(torch.fft.ifft2(filtered)).square()
        return torch.sqrt(squares[..., 0] + squares[..., 1])  # three times as fast as abs()

    def _averaged(self, moduli: Tensor, scale: int) -> Tensor:
        """Return x * phi at every ``STRIDE``-th pixel of the image, without its margins."""
        rows, columns = self.get_buffer(f"rows_{scale}"), self.get_buffer(f"columns_{scale}")
        means: Tensor = (rows @ moduli) @ columns
        return means


def morlet_spectra(height: int, width: int, scale: int) -> Tensor:
    """Return the spectra of the Morlet wavelets of one scale.

    A spectrum is a Gaussian bump around the wave's frequency, minus a term that makes the mean
    exactly zero. It is real, as the wavelet's real part is even and its imaginary part odd.

    Args:
        height: Height of the padded image, in pixels.
        width: Width of the padded image, in pixels.
        scale: 0 for the finest wavelets; each scale doubles the spread.

    Returns:
        Shape ``(angles, height, width)``, float64.
    """
    spread, frequency = SPREAD * 2**scale, FREQUENCY / 2**scale
    found: list[Tensor] = []
    for angle in range(ANGLES):
        turn = math.pi * angle / ANGLES
        bump = _gaussian(height, width, spread, turn, frequency)
        still = _gaussian(height, width, spread, turn, 0.0)
        found.append(bump - bump[0, 0] / still[0, 0] * still)
    # Subsampling adds 4^scale parts of the spectrum; this division turns the sum into a mean.
    return torch.stack(found).div(4**scale)


def _gaussian(height: int, width: int, spread: float, turn: float, frequency: float) -> Tensor:
    """Return the spectrum of a rotated Gaussian envelope times a wave of ``frequency``.

    A sampled function's spectrum is periodic: it is the sum over all periods.
    """
    total = torch.zeros(height, width, dtype=torch.float64)
    for down in range(-ALIASES, ALIASES + 1):
        for across in range(-ALIASES, ALIASES + 1):
            rows = 2 * math.pi * (torch.fft.fftfreq(height, dtype=torch.float64) + down)
            columns = 2 * math.pi * (torch.fft.fftfreq(width, dtype=torch.float64) + across)
            along = math.cos(turn) * columns + math.sin(turn) * rows[:, None] - frequency
            aside = math.cos(turn) * rows[:, None] - math.sin(turn) * columns
            total += torch.exp(-(spread**2) / 2 * (along**2 + (aside / ASPECT) ** 2))
    return total


def low_pass_matrix(side: int, step: int) -> Tensor:
    """Return the Gaussian average along one side as a matrix.

    Row i has the weights, over every ``step``-th pixel, of the average around pixel
    ``STRIDE * (i + 1)``. In two dimensions the average is one such product on each side.

    Args:
        side: Length of the padded side, in pixels.
        step: Distance of the pixels that are averaged.

    Returns:
        Shape ``(side / STRIDE - 2, side / step)``, float64; each row sums to 1.
    """
    spread = SPREAD * STRIDE / 2
    centers = torch.arange(STRIDE, side - STRIDE, STRIDE, dtype=torch.float64)
    pixels = torch.arange(0, side, step, dtype=torch.float64)
    apart = (pixels - centers[:, None]) / spread
    weights = torch.exp(-(apart**2) / 2)
    return weights / weights.sum(dim=1, keepdim=True)
