"""Noise on the clipped sum: independent, on a grid, or correlated between steps.

Noise is added once, to the sum over all ranks and chunks. It depends on the key and the step
alone, so ranks with the same key add the same noise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dpaudit.trainer.noise import gaussian_draws, grid_noise
from dpaudit.trainer.noise.gaussian_draws import normal_chunks, normals
from dpaudit.trainer.noise.kernels import kernels
from dpaudit.trainer.noise.prefetch import NoisePrefetcher
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count
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
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Add independent normals of deviation noise_multiplier * norm.

        Args:
            sums: Clipped sums per parameter; they may be changed in place.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums by the same names, with the same shapes.
        """
        return add_step_noise(self, sums, context, noise_multiplier, norm)

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
        return _add_scaled(sums, drawn, noise_multiplier * norm)


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
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Round the sums to the grid and add rounded normals.

        Args:
            sums: Clipped sums per parameter; they may be changed in place.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums by the same names, with the same shapes.
        """
        return add_step_noise(self, sums, context, noise_multiplier, norm)

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
        grid = grid_noise.grid_spacing(norm, count_coordinates(sums))
        for piece, draws in _pieces(sums, drawn):
            grid_noise.add_in_place(piece, draws, grid)
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
        dimension, device = count_coordinates(sums), _device(sums)
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


@dataclass
class Banded:
    """Noise that is correlated over neighboring steps: DP-FTRL with a banded factorization.

    The noise of all steps is C^-1 Z with Z independent. Below its diagonal, C has the first
    ``bands`` coefficients of (1 - x)^(-1/2), scaled to columns of norm 1. So what a record adds
    at steps that are ``bands`` apart has norm 1 in C. Row t of the noise follows from the rows
    before it: y_t = (z_t - sum_i c_i y_(t-i)) / c_0. Use it together with the sampler ``Cyclic``.

    Attributes:
        bands: Number of bands of C. The noise of ``bands`` - 1 earlier steps is kept in memory.

    References:
        Choquette-Choo et al. (2023), arXiv:2306.08153, section 4. Kalinin & Lampert (2024),
        arXiv:2405.13763, equation 5.

    Example:
        >>> noise = Banded(2)
        >>> [round(value, 4) for value in noise.coefficients]
        [0.8944, 0.4472]
    """

    kind: ClassVar[NoiseKind] = NoiseKind.CORRELATED

    bands: int
    _rows: deque[Tensor] = field(init=False, repr=False)
    _next: int = field(default=-1, init=False, repr=False)
    _stream: Keystream | None = field(default=None, init=False, repr=False)
    _inverse: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        require_count("bands", self.bands)
        self._rows = deque(maxlen=max(1, self.bands - 1))

    @property
    def coefficients(self) -> list[float]:
        """The column of C from the diagonal down, shape ``(bands,)``, of L2 norm at most 1."""
        # (1 - x)^(-1/2) = sum_k a_k x^k with a_0 = 1 and a_k = a_(k-1) (2k - 1) / (2k).
        series = [1.0]
        for k in range(1, self.bands):
            series.append(series[-1] * (2 * k - 1) / (2 * k))
        norm = math.hypot(*series) * (1 + 1e-12)  # rounded up, so that a column's norm is at most 1
        return [value / norm for value in series]

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, context: NoiseContext
    ) -> float:
        """Return noise_multiplier * norm times the norm of this step's row of C^-1.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.
            context: Keystream and step.

        Returns:
            Standard deviation of the noise on one coordinate.
        """
        return noise_multiplier * norm * self._row_norm(context.step - context.first)

    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Add this step's row of C^-1 Z; missing earlier rows are drawn again from the key.

        Args:
            sums: Clipped sums per parameter; they may be changed in place.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums by the same names, with the same shapes.

        Raises:
            InvalidArgument: If the number of coordinates differs from earlier steps.
        """
        if (
            self._stream is context.stream
            and self._rows
            and len(self._rows[0]) != count_coordinates(sums)
        ):
            raise InvalidArgument(
                "model", f"{count_coordinates(sums)} trainable numbers",
                f"of {len(self._rows[0])}, as in the "
                "steps before: correlated noise needs the same coordinates in every step",
            )  # fmt: skip
        # After a resume, or with another key, the kept rows are not those before this step.
        if self._next != context.step or self._stream is not context.stream:
            self._rows.clear()
            for step in range(context.first, context.step):
                self._make(NoiseContext(context.stream, step, context.first), sums)
        return _add_scaled(sums, [self._make(context, sums)], noise_multiplier * norm)

    def _make(self, context: NoiseContext, sums: GradientSums) -> Tensor:
        """Return row t of C^-1 Z from z_t and the rows before it, and keep it."""
        first, *others = self.coefficients
        row = standard_normals(context, count_coordinates(sums), _device(sums))
        # y_t = (z_t - sum_i c_i y_(t-i)) / c_0; the newest kept row is y_(t-1).
        for coefficient, earlier in zip(others, reversed(self._rows), strict=False):
            row.sub_(earlier, alpha=coefficient)
        row.div_(first)
        if others:
            self._rows.append(row)
        self._next, self._stream = context.step + 1, context.stream
        return row

    def _row_norm(self, row: int) -> float:
        """Return the norm of a row of C^-1, whose entries are those of one column, reversed."""
        # The noise of row t has deviation sigma sqrt(sum_(i<=t) a_i^2), a the column of C^-1.
        first, *others = self.coefficients
        column = self._inverse
        while len(column) <= row:
            # C times a column of C^-1 is a unit vector: 1, then zeros.
            earlier = zip(others, reversed(column), strict=False)
            column.append((0.0 if column else 1.0) / first - sum(c * d for c, d in earlier) / first)
        return math.hypot(*column[: row + 1])


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


def _device(sums: Mapping[str, Tensor]) -> torch.device:
    """Return the device of the sums, which is the same for all."""
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
    drawn = noise.draw(context, scale, dimension, _device(sums))
    return noise.add_drawn(sums, drawn, noise_multiplier, norm)


def _add_scaled(sums: GradientSums, drawn: Iterable[Tensor], deviation: float) -> GradientSums:
    """Add consecutive draws, times ``deviation``, to the sums in place."""
    for piece, draws in _pieces(sums, drawn):
        piece.add_(draws, alpha=deviation)
    return sums


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
