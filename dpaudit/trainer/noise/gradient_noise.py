"""Noise on the clipped sum that is independent between steps: in float32, or on a grid.

Noise is added once, to the sum over all ranks and chunks. It depends on the key and the step
alone, so ranks with the same key add the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dpaudit.trainer.noise import gaussian_draws, grid_noise
from dpaudit.trainer.noise.gaussian_draws import Normals, normal_chunks, normals
from dpaudit.trainer.noise.kernels import kernels
from dpaudit.trainer.noise.prefetch import NoisePrefetcher
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import NoiseKind

GradientSums = dict[str, Tensor]
"""Sums per parameter name, or per further coordinate."""


@dataclass(frozen=True)
class NoiseContext:
    """The place in a run at which noise is drawn.

    Attributes:
        stream: Keystream whose key the noise depends on.
        step: Number of the step, from 0.
        first: Step at which this key began: 0, or the step at which a run was resumed.
    """

    stream: Keystream
    step: int
    first: int = 0


class GradientNoise(Protocol):
    """A kind of noise: turns the clipped sum into the released sum."""

    @property
    def kind(self) -> NoiseKind:
        """What the ledger records."""

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, context: NoiseContext
    ) -> float:
        """Return the standard deviation of the noise on one coordinate.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.
            context: Keystream and step.

        Returns:
            Standard deviation of the noise on one coordinate.
        """

    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Add noise whose deviation is at least noise_multiplier times the sensitivity.

        Args:
            sums: Clipped sums per parameter; they may be changed in place.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums by the same names, with the same shapes.
        """


class StepNoise(GradientNoise, Protocol):
    """Noise of one step alone: draws that can be made before the sum is known."""

    def scale(self, noise_multiplier: float, norm: float, dimension: int) -> float:
        """Return what the draws depend on beside their address.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.

        Returns:
            A scale for ``draw``.
        """

    def draw(
        self, context: NoiseContext, scale: float, count: int, device: torch.device
    ) -> Iterable[Tensor]:
        """Return the draws of one step, in chunks.

        Args:
            context: Keystream and step.
            scale: As ``scale`` returned.
            count: Number of draws.
            device: Device of the sums.

        Returns:
            One-dimensional tensors, of ``count`` entries in all; the next one may overwrite one.
        """

    def add_drawn(
        self, sums: GradientSums, drawn: Iterable[Tensor], noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Add draws to the sums, in the order of the coordinates.

        Args:
            sums: Clipped sums per parameter; they are changed in place.
            drawn: Draws of ``draw``, in order.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums.
        """


@dataclass(frozen=True)
class Independent:
    """Independent normals in each step: the Gaussian mechanism, in float32.

    Example:
        >>> from dpaudit.trainer.noise.randomness import Keystream
        >>> context = NoiseContext(Keystream.seeded(0), step=0)
        >>> Independent().deviation(2.0, 0.5, dimension=10, context=context)
        1.0
    """

    kind: ClassVar[NoiseKind] = NoiseKind.NORMAL

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, context: NoiseContext
    ) -> float:
        """Return noise_multiplier * norm.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.
            context: Keystream and step.

        Returns:
            Standard deviation of the noise on one coordinate.
        """
        return noise_multiplier * norm

    def add_noise(
        self,
        sums: GradientSums,
        context: NoiseContext,
        noise_multiplier: float,
        norm: float,
        *,
        share: float = 1.0,
    ) -> GradientSums:
        """Add independent normals of deviation noise_multiplier * norm.

        Args:
            sums: Clipped sums per parameter; they may be changed in place.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            share: Factor on the noisy sums, in the same pass.

        Returns:
            The noisy sums by the same names, with the same shapes.
        """
        if not all(map(_is_plain, sums.values())):
            return multiply(add_step_noise(self, sums, context, noise_multiplier, norm), share)
        count, deviation = count_coordinates(sums), noise_multiplier * norm
        source = Normals(context.stream, Purpose.GRADIENT_NOISE, context.step, count)
        for part in sums.values():
            source.add_to(part.view(-1), deviation, share)
        return sums

    def scale(self, noise_multiplier: float, norm: float, dimension: int) -> float:
        """Return 1, as the draws are standard normals.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.

        Returns:
            1.0
        """
        return 1.0

    def draw(
        self, context: NoiseContext, scale: float, count: int, device: torch.device
    ) -> Iterable[Tensor]:
        """Return standard normals.

        Args:
            context: Keystream and step.
            scale: As ``scale`` returned.
            count: Number of draws.
            device: Device of the sums.

        Returns:
            One-dimensional tensors, of ``count`` entries in all; the next one may overwrite one.
        """
        if device.type == "cpu":
            return normal_chunks(context.stream, Purpose.GRADIENT_NOISE, context.step, count)
        return [standard_normals(context, count, device)]

    def add_drawn(
        self, sums: GradientSums, drawn: Iterable[Tensor], noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Add draws times noise_multiplier * norm.

        Args:
            sums: Clipped sums per parameter; they are changed in place.
            drawn: Draws of ``draw``, in order.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums.
        """
        return add_scaled(sums, drawn, noise_multiplier * norm)


@dataclass(frozen=True)
class OnGrid:
    """Rounded normals on a grid, so that the low bits of floats reveal nothing about the sum.

    Rounding the sum increases its sensitivity by at most 1/1024; the noise is larger in the same
    proportion. See ``grid_noise`` for the derivation.

    Example:
        >>> noise = OnGrid()
        >>> 1.0 < noise.widened_sensitivity(1.0, dimension=1000) < 1.001
        True
    """

    kind: ClassVar[NoiseKind] = NoiseKind.GRID

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, context: NoiseContext
    ) -> float:
        """Return noise_multiplier times the sensitivity of the rounded sum.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.
            context: Keystream and step.

        Returns:
            Standard deviation of the noise on one coordinate.
        """
        return noise_multiplier * self.widened_sensitivity(norm, dimension)

    def widened_sensitivity(self, sensitivity: float, dimension: int) -> float:
        """Return the L2 sensitivity of the sum after rounding to the grid, rounded up.

        Args:
            sensitivity: Largest L2 norm of what one record adds before rounding.
            dimension: Number of coordinates of the sum.

        Returns:
            At least sensitivity + g sqrt(dimension), where g is the grid spacing.
        """
        step = grid_noise.grid_spacing(sensitivity, dimension) * math.sqrt(dimension)
        return math.nextafter(sensitivity + math.nextafter(step, math.inf), math.inf)

    def add_noise(
        self,
        sums: GradientSums,
        context: NoiseContext,
        noise_multiplier: float,
        norm: float,
        *,
        share: float = 1.0,
    ) -> GradientSums:
        """Round the sums to the grid and add rounded normals.

        Args:
            sums: Clipped sums per parameter; they may be changed in place.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            share: Factor on the noisy sums, in the same pass.

        Returns:
            The noisy sums by the same names, with the same shapes.
        """
        dimension = count_coordinates(sums)
        scale = self.scale(noise_multiplier, norm, dimension)
        drawn = self.draw(context, scale, dimension, device_of(sums))
        return _add_units(sums, drawn, norm, share)

    def scale(self, noise_multiplier: float, norm: float, dimension: int) -> float:
        """Return the standard deviation of the noise in grid steps.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.

        Returns:
            The standard deviation before rounding, in grid steps.

        Raises:
            InvalidArgument: If it is not between 2^-32 and 2^32 grid steps.
        """
        deviation = noise_multiplier * self.widened_sensitivity(norm, dimension)
        return grid_noise.deviation_in_units(deviation, grid_noise.grid_spacing(norm, dimension))

    def draw(
        self, context: NoiseContext, scale: float, count: int, device: torch.device
    ) -> Iterable[Tensor]:
        """Return rounded normals in grid steps, in float64 on the CPU.

        Args:
            context: Keystream and step.
            scale: As ``scale`` returned.
            count: Number of draws.
            device: Device of the sums.

        Returns:
            One-dimensional tensors, of ``count`` entries in all; the next one may overwrite one.
        """
        chunks = grid_noise.grid_chunks(
            context.stream, Purpose.GRADIENT_NOISE, context.step, scale, count
        )
        return map(torch.from_numpy, chunks)

    def add_drawn(
        self, sums: GradientSums, drawn: Iterable[Tensor], noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Round the sums to the grid and add draws in grid steps.

        Args:
            sums: Clipped sums per parameter; they are changed in place.
            drawn: Draws of ``draw``, in order.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums.

        Raises:
            InvalidArgument: If a sum is not finite, or beyond 2^52 grid steps.
        """
        return _add_units(sums, drawn, norm, 1.0)


def _add_units(
    sums: GradientSums, drawn: Iterable[Tensor], norm: float, share: float
) -> GradientSums:
    """Round the sums to the grid, add draws in grid steps, and multiply by ``share``."""
    grid = grid_noise.grid_spacing(norm, count_coordinates(sums))
    for piece, draws in _pieces(sums, drawn):
        grid_noise.add_in_place(piece, draws, grid, share)
    return sums


class Prefetched:
    """Noise that is drawn in a thread while the previous step is computed.

    If the scale of the draws changes between steps, as with adaptive clipping on a grid, they are
    drawn again on demand, which costs time alone.

    Args:
        noise: The noise of a step: ``Independent`` or ``OnGrid``. None: ``Independent()``, also
            where exact noise is the default of ``make_private``.

    Attributes:
        noise: The noise of a step.

    Example:
        >>> import torch
        >>> from dpaudit.trainer.noise.randomness import Keystream
        >>> context = NoiseContext(Keystream.seeded(0), step=0)
        >>> ahead = Prefetched().add_noise({"w": torch.zeros(3)}, context, 1.0, 1.0)
        >>> plain = Independent().add_noise({"w": torch.zeros(3)}, context, 1.0, 1.0)
        >>> torch.equal(ahead["w"], plain["w"])
        True
    """

    def __init__(self, noise: StepNoise | None = None) -> None:
        self.noise: StepNoise = Independent() if noise is None else noise
        self._prefetcher: NoisePrefetcher[tuple[float, Tensor]] | None = None
        self._stream: Keystream | None = None
        self._dimension = 0
        self._wanted = _Wanted()

    @property
    def kind(self) -> NoiseKind:
        """The kind of the noise of a step."""
        return self.noise.kind

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, context: NoiseContext
    ) -> float:
        """Return the deviation of the noise of a step.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.
            context: Keystream and step.

        Returns:
            Standard deviation of the noise on one coordinate.
        """
        return self.noise.deviation(noise_multiplier, norm, dimension, context)

    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Add the prefetched noise of this step.

        Args:
            sums: Clipped sums per parameter; they may be changed in place.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums by the same names, with the same shapes.

        Raises:
            NoiseReused: If the noise of this step was handed out before.
            ForkedSession: If this process is a fork of the one that began prefetching.
        """
        dimension, device = count_coordinates(sums), device_of(sums)
        self._wanted.scale = scale = self.noise.scale(noise_multiplier, norm, dimension)
        # Another dimension means other trainable parameters. Noise that was prefetched for this
        # step but never handed out is dropped together with its prefetcher.
        usable = self._stream is context.stream and self._dimension == dimension
        if self._prefetcher is None or not usable:
            self._prefetcher = self._start(self.noise, self._wanted, context, dimension, device)
            self._stream, self._dimension = context.stream, dimension
        made_for, drawn = self._prefetcher.take(context.step)
        chunks: Iterable[Tensor] = [drawn]
        if made_for != scale:  # never handed out
            chunks = self.noise.draw(context, scale, dimension, device)
        return self.noise.add_drawn(sums, chunks, noise_multiplier, norm)

    @staticmethod
    def _start(
        noise: StepNoise,
        wanted: _Wanted,
        context: NoiseContext,
        dimension: int,
        device: torch.device,
    ) -> NoisePrefetcher[tuple[float, Tensor]]:
        """Return a prefetcher that begins with the noise of this step."""
        stream, first = context.stream, context.first

        def make(step: int) -> tuple[float, Tensor]:
            scale = wanted.scale
            chunks = noise.draw(NoiseContext(stream, step, first), scale, dimension, device)
            return scale, torch.cat([chunk.clone() for chunk in chunks])

        return NoisePrefetcher(make, first=context.step)


@dataclass
class _Wanted:
    """The scale of the step taken last, for which the next step's noise is made."""

    scale: float = 1.0


def noise_kind(noise: object) -> NoiseKind:
    """Return the kind of noise that the ledger records.

    Args:
        noise: The noise of a run, possibly of the user's own class.

    Returns:
        Its kind; ``OTHER`` if it names none.
    """
    kind = getattr(noise, "kind", None)
    return kind if isinstance(kind, NoiseKind) else NoiseKind.OTHER


def default_noise(
    device: torch.device, noise_multiplier: float, norm: float, dimension: int
) -> Independent | OnGrid:
    """Return the noise of a run that names none.

    Args:
        device: Device of the parameters.
        noise_multiplier: Noise standard deviation over the sensitivity.
        norm: The sensitivity: largest L2 norm of what one record adds.
        dimension: Number of coordinates of the sum.

    Returns:
        Exact noise on a grid on a CPU with compiled kernels, unless the deviation is outside of
        what a grid allows; else independent normals.
    """
    if device.type != "cpu" or not kernels().compiled:
        return Independent()
    try:
        OnGrid().scale(noise_multiplier, norm, dimension)
    except InvalidArgument:
        return Independent()
    return OnGrid()


def standard_normals(context: NoiseContext, count: int, device: torch.device) -> Tensor:
    """Return the draws of N(0, 1) of one step.

    Args:
        context: Keystream and step.
        count: Number of draws.
        device: Where they are made. On the CPU, by AES; elsewhere, by ChaCha20 on the device.

    Returns:
        Shape ``(count,)``, float32, on ``device``.
    """
    purpose = Purpose.GRADIENT_NOISE
    if device.type == "cpu":
        return normals(context.stream, purpose, context.step, count)
    key = gaussian_draws.derive_device_key(context.stream)
    return gaussian_draws.device_normals(key, purpose, context.step, count, device)


def count_coordinates(sums: Mapping[str, Tensor]) -> int:
    """Return the total number of coordinates of sums.

    Args:
        sums: Sums per parameter.

    Returns:
        The number of entries of all tensors together.
    """
    return sum(part.numel() for part in sums.values())


def device_of(sums: Mapping[str, Tensor]) -> torch.device:
    """Return the device of the sums, which is the same for all.

    Args:
        sums: At least one sum.

    Returns:
        The device of the first.
    """
    return next(iter(sums.values())).device


def add_step_noise(
    noise: StepNoise,
    sums: GradientSums,
    context: NoiseContext,
    noise_multiplier: float,
    norm: float,
) -> GradientSums:
    """Draw the noise of one step and add it, a chunk at a time.

    Args:
        noise: The noise of a step.
        sums: Clipped sums per parameter; they may be changed in place.
        context: Keystream and step; one pair gives one noise.
        noise_multiplier: Noise standard deviation over the sensitivity.
        norm: The sensitivity: largest L2 norm of what one record adds.

    Returns:
        The noisy sums by the same names, with the same shapes.
    """
    dimension = count_coordinates(sums)
    scale = noise.scale(noise_multiplier, norm, dimension)
    drawn = noise.draw(context, scale, dimension, device_of(sums))
    return noise.add_drawn(sums, drawn, noise_multiplier, norm)


HALF = 0.5
"""Mantissa of a power of two."""


def noisy_means(
    noise: GradientNoise,
    sums: GradientSums,
    context: NoiseContext,
    noise_multiplier: float,
    norm: float,
    expected: float,
) -> GradientSums:
    """Return the noisy sums over the expected batch size, as ``divide`` of ``add_noise``.

    Args:
        noise: The noise of a step.
        sums: Clipped sums per parameter; they may be changed in place.
        context: Keystream and step; one pair gives one noise.
        noise_multiplier: Noise standard deviation over the sensitivity.
        norm: The sensitivity: largest L2 norm of what one record adds.
        expected: The expected batch size, in records.

    Returns:
        The means by the same names, with the same shapes.
    """
    # A class derived from these may add other noise, without this factor.
    if math.frexp(expected)[0] == HALF and (type(noise) is Independent or type(noise) is OnGrid):
        return noise.add_noise(sums, context, noise_multiplier, norm, share=1 / expected)
    return divide(noise.add_noise(sums, context, noise_multiplier, norm), expected)


def divide(sums: GradientSums, divisor: float) -> GradientSums:
    """Divide sums in place.

    Args:
        sums: Sums per parameter.
        divisor: The divisor, above 0.

    Returns:
        The sums.
    """
    # Division by a power of two is a multiplication, bit for bit, in half the time.
    if math.frexp(divisor)[0] == HALF:
        return multiply(sums, 1 / divisor)
    for part in sums.values():
        part.div_(divisor)
    return sums


def multiply(sums: GradientSums, factor: float) -> GradientSums:
    """Multiply sums in place.

    Args:
        sums: Sums per parameter.
        factor: The factor.

    Returns:
        The sums.
    """
    for part in sums.values() if factor != 1.0 else ():
        part.mul_(factor)
    return sums


def add_scaled(sums: GradientSums, drawn: Iterable[Tensor], deviation: float) -> GradientSums:
    """Add consecutive draws, times ``deviation``, to the sums in place.

    Args:
        sums: Sums of ``count_coordinates(sums)`` coordinates in total.
        drawn: Draws for all coordinates, in parts of any length, each of one dimension.
        deviation: Factor on the draws.

    Returns:
        The sums.
    """
    for piece, draws in _pieces(sums, drawn):
        if _is_plain(piece) and _is_plain(draws):
            kernels().add_scaled(piece, draws, deviation)  # the same result as in one pass
        else:
            piece.add_(draws, alpha=deviation)
    return sums


def _is_plain(part: Tensor) -> bool:
    """Return whether the kernels take a tensor as it is in memory."""
    return part.is_cpu and part.dtype is torch.float32 and part.is_contiguous()


def _pieces(sums: Mapping[str, Tensor], drawn: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield consecutive pieces of the sums, to be changed in place, each with its draws."""
    chunks, draws, used, end = iter(drawn), torch.empty(0), 0, 0
    for part in sums.values():
        flat, start = part.reshape(-1), 0  # a view, unless the part is not contiguous
        count = part.numel()
        while start < count:
            if used == end:
                draws = next(chunks)
                used, end = 0, len(draws)
            length = min(end - used, count - start)
            own = draws if length == end else draws[used : used + length]
            yield flat[start : start + length], own
            start, used = start + length, used + length
        if not part.is_contiguous():
            part.copy_(flat.view(part.shape))
