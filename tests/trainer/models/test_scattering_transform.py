"""Scattering features: the slow, direct transform is the oracle; then what they are used for."""

from __future__ import annotations

import cmath
import math
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dpaudit.trainer.models.scattering_transform import (
    ANGLES,
    IMAGES_AT_ONCE,
    SCATTERING_CHANNELS,
    STRIDE,
    ScatteringTransform,
    morlet_spectra,
)
from dpaudit.vocabulary.errors import InvalidArgument

Array = NDArray[np.float64]


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


# The oracle: convolutions by their definition, wavelets by their formula in space, in float64.


def envelope(down: int, across: int, spread: float, angle: int) -> tuple[float, float]:
    """Return how far a pixel is along the wave, and the Gaussian envelope there."""
    turn = math.pi * angle / ANGLES
    along = math.cos(turn) * across + math.sin(turn) * down
    aside = math.cos(turn) * down - math.sin(turn) * across
    weight = math.exp(-(along**2 + (aside / 2) ** 2) / (2 * spread**2))
    return along, weight / (2 * math.pi * spread**2 * 2)


@cache
def morlet(scale: int, angle: int) -> NDArray[np.complex128]:
    """Return exp(i xi x) under its envelope, less as much of the envelope as makes the mean 0."""
    spread, frequency, reach = 0.8 * 2**scale, 0.75 * math.pi / 2**scale, 11 * 2**scale
    wave = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.complex128)
    still = np.zeros_like(wave)
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            along, weight = envelope(i, j, spread, angle)
            wave[i + reach, j + reach] = weight * cmath.exp(1j * frequency * along)
            still[i + reach, j + reach] = weight
    return wave - wave.sum() / still.sum() * still


def convolved(image: Array, kernel: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return the convolution on a torus: what leaves on one side comes in on the other."""
    reach = len(kernel) // 2
    around = np.pad(image, reach, mode="wrap")
    # Row i, column j: the image around the pixel, the kernel's first entry at its last pixel.
    windows = np.lib.stride_tricks.sliding_window_view(around, kernel.shape)
    return np.einsum("ijkl,kl->ij", windows, kernel[::-1, ::-1])


def averaged(image: Array, spread: float = 1.6) -> Array:
    """Return the Gaussian average around every fourth pixel, margins of four left out."""
    height, width = image.shape
    rows, columns = np.arange(height), np.arange(width)
    found = np.empty((height // 4 - 2, width // 4 - 2))
    for i, j in np.ndindex(*found.shape):
        by_row = np.exp(-((rows - 4 * (i + 1)) ** 2) / (2 * spread**2))
        by_column = np.exp(-((columns - 4 * (j + 1)) ** 2) / (2 * spread**2))
        weights = np.outer(by_row, by_column)
        found[i, j] = (weights * image).sum() / weights.sum()
    return found


def averaged_coarse(image: Array) -> Array:
    """Return the same from every second pixel, in which the transform holds coarse moduli."""
    thinned = np.zeros_like(image)
    thinned[::2, ::2] = image[::2, ::2]
    mask = np.zeros_like(image)
    mask[::2, ::2] = 1
    return averaged(thinned) / averaged(mask)


def slow_scattering(image: Array) -> Array:
    margins = [(4, 4 * (-(-side // 4) + 2) - side - 4) for side in image.shape]
    padded = np.pad(image, margins, mode="reflect")
    fine = [np.abs(convolved(padded, morlet(0, angle))) for angle in range(8)]
    coarse = [np.abs(convolved(padded, morlet(1, angle))) for angle in range(8)]
    again = [np.abs(convolved(one, morlet(1, angle))) for one in fine for angle in range(8)]
    return np.stack(
        [averaged(padded)]
        + [averaged(one) for one in fine]
        + [averaged_coarse(one) for one in coarse + again]
    )


@pytest.mark.parametrize("shape", [(8, 8), (9, 14)])
def test_the_transform_is_the_direct_one(shape: tuple[int, int]) -> None:
    image = images(1, *shape)
    expected = slow_scattering(image[0].double().numpy())
    assert np.allclose(ScatteringTransform(shape)(image)[0].numpy(), expected, atol=2e-6)


def test_wavelets_have_no_mean() -> None:
    for scale in (0, 1):
        assert morlet_spectra(16, 20, scale)[:, 0, 0].abs().max() == 0


# Laws.


@pytest.mark.parametrize(
    ("shape", "sides", "planes"),
    [
        ((28, 28), (7, 7), 1),
        ((1, 28, 28), (7, 7), 1),
        ((3, 32, 32), (8, 8), 3),
        ((8, 8), (2, 2), 1),
        ((2, 30, 21), (8, 6), 2),
    ],
)
def test_sizes_and_colours(shape: tuple[int, ...], sides: tuple[int, int], planes: int) -> None:
    features = ScatteringTransform(shape)(images(3, *shape))
    assert features.shape == (3, planes * 81, *sides)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()


def test_each_colour_is_transformed_by_itself() -> None:
    image = images(2, 3, 12, 12)
    together = ScatteringTransform((3, 12, 12))(image)
    for colour in range(3):
        alone = ScatteringTransform((12, 12))(image[:, colour])
        assert torch.equal(
            together[:, SCATTERING_CHANNELS * colour : SCATTERING_CHANNELS * (colour + 1)], alone
        )


def test_record_transform_is_independent_of_the_batch() -> None:
    batch = images(2 * IMAGES_AT_ONCE + 3, 12, 12)
    transform = ScatteringTransform((12, 12))
    together = transform(batch)
    for i in (0, IMAGES_AT_ONCE - 1, IMAGES_AT_ONCE, len(batch) - 1):
        assert torch.allclose(together[i], transform(batch[i : i + 1])[0], atol=1e-6)
    assert torch.allclose(transform(batch.flip(0)).flip(0), together, atol=1e-6)


def test_no_records_have_no_features() -> None:
    assert ScatteringTransform((28, 28))(torch.empty(0, 28, 28)).shape == (0, 81, 7, 7)


def test_nothing_is_trained_or_saved() -> None:
    transform = ScatteringTransform((28, 28))
    assert not list(transform.parameters())
    assert not transform.state_dict()


def test_frames_of_wavelets_and_average_lose_energy_and_never_gain_any() -> None:
    """Littlewood and Paley's sum is at most 1: so every layer is a contraction."""
    frequencies = 2 * math.pi * torch.fft.fftfreq(36, dtype=torch.float64)
    squares = frequencies**2
    total = torch.exp(-(1.6**2) * (squares[:, None] + squares))  # of the average, squared
    for scale in (0, 1):
        spectra = (morlet_spectra(36, 36, scale) * 4**scale).square().sum(dim=0)
        mirrored = spectra.flip((0, 1)).roll((1, 1), (0, 1))
        total += (spectra + mirrored) / 2
    assert total.max() <= 1 + 1e-9
    assert total[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("apart", [1.0, 0.01])
def test_features_are_no_further_apart_than_images(apart: float) -> None:
    """Up to the margins, and to one feature standing for STRIDE x STRIDE pixels."""
    one = images(50, 28, 28)
    other = one + apart * torch.randn(50, 28, 28, generator=torch.Generator().manual_seed(2))
    transform = ScatteringTransform((28, 28))
    between = STRIDE * (transform(one) - transform(other)).flatten(1).norm(dim=1)
    padded = torch.nn.functional.pad((one - other), (4, 4, 4, 4), mode="reflect")
    assert (between <= padded.flatten(1).norm(dim=1)).all()


def test_a_shift_by_one_pixel_moves_features_far_less_than_pixels() -> None:
    image = torch.zeros(1, 32, 32)
    image[0, 10:22, 9] = image[0, 12, 8:20] = image[0, 16:20, 14:18] = 1.0  # strokes and a blot
    shifted = image.roll(1, dims=2)
    transform = ScatteringTransform((32, 32))

    def moved(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).norm() / one.norm())

    assert moved(transform(image), transform(shifted)) < 0.35 * moved(image, shifted)


def test_a_shift_by_a_whole_stride_shifts_the_features() -> None:
    image = torch.zeros(1, 64, 64)
    image[0, 28:36, 28:36] = images(8, 8)
    features = ScatteringTransform((64, 64))(image)
    shifted = ScatteringTransform((64, 64))(image.roll(STRIDE, dims=2))
    assert torch.allclose(shifted[..., 2:], features[..., 1:-1], atol=1e-4)


def test_a_turned_image_has_turned_waves() -> None:
    """A quarter turn moves each wave on by half of the angles."""
    image = images(1, 29, 29)  # one more than a multiple of STRIDE: the pixels kept turn, too
    image[:, :, -1] = image[:, -1] = 0
    transform = ScatteringTransform((29, 29))
    fine = transform(image)[0, 1:9]
    turned = transform(torch.rot90(image, 1, (1, 2)))[0, 1:9]
    inner = slice(2, -2)
    expected = torch.rot90(fine, 1, (1, 2)).roll(ANGLES // 2, 0)
    assert torch.allclose(turned[:, inner, inner], expected[:, inner, inner], atol=1e-3)


@pytest.mark.parametrize("shape", [(64,), (7, 28), (3, 28, 7), (2, 3, 28, 28)])
def test_what_is_no_image_is_refused_in_words(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="scattering"):
        ScatteringTransform(shape)
