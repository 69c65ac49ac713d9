"""Noise on the clipped sum: independent, on a grid, or correlated between steps.

Noise is added once, to the sum over all ranks and chunks. It depends on the key and the step
alone, so ranks with the same key add the same noise.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from dpaudit.trainer.noise import gaussian_draws, grid_noise
from dpaudit.trainer.noise.gaussian_draws import normals
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import ForkedSession, InvalidArgument, NoiseReused, require_count

# Prefetching of noise: the next step's noise is made while a step computes its gradients.
#
# Noise depends on the step and on no record, so it can be made before it is needed. One thread
# makes the noise of one step, and at most one step's noise is kept in memory.
#
# Noise that is used twice cancels in a difference. So each step's noise is handed out once, and
# only in the process that made the prefetcher: a fork would carry the same key away, and has no
# copy of the thread.


class NoisePrefetcher:
    """Makes the noise of consecutive steps, each before it is needed.

    Args:
        make: From the number of the step to its noise. It runs in the thread and must name its
            device, as the current device is a setting of each thread.
        first: The step whose noise is made first, at once.
    """

    def __init__(self, make: Callable[[int], Tensor], *, first: int = 0) -> None:
        self._make, self._process, self._lock = make, os.getpid(), Lock()
        self._taken = StepSet(first)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")
        self._expected = first
        self._pending: Future[Tensor] | None = self._begin(first)

    def take(self, step: int) -> Tensor:
        """Return the noise of ``step``, and start making the next step's.

        If ``step`` is not the expected one, its noise is made now, while the caller waits. An error
        of ``make`` is raised here; the step can then be taken again.

        Args:
            step: Number of the step, from 0.

        Returns:
            What ``make`` returned for this step.

        Raises:
            NoiseReused: If the noise of this step was handed out before.
            ForkedSession: If this is another process than the one that made the prefetcher.
            RuntimeError: If ``close`` was called.
        """
        # Checked before taking the lock, which a fork may have copied while it was held.
        if os.getpid() != self._process:
            raise ForkedSession(
                "prefetched noise was used in a forked process, which would use the same noise "
                "as its parent: call make_private in each process"
            )
        # One lock for the taken steps and the pending one: no two threads get one noise.
        with self._lock:
            if step in self._taken:
                raise NoiseReused(
                    f"the noise of step {step} was used before: noise that is used twice cancels"
                )
            noise = self._made(step)
            self._taken.add(step)
            self._expected = step + 1
            if self._expected not in self._taken:
                self._pending = self._begin(self._expected)
            return noise

    def close(self) -> None:
        """Wait for noise in the making, and drop it; a second call does nothing."""
        if os.getpid() == self._process:  # a fork has no thread to wait for
            with self._lock:
                self._forget()
                self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _made(self, step: int) -> Tensor:
        """Return the noise of ``step``, waiting for it or making it."""
        if step != self._expected:
            self._forget()
        pending, self._pending = self._pending or self._begin(step), None
        return pending.result()

    def _begin(self, step: int) -> Future[Tensor]:
        """Start to make the noise of ``step`` in the thread."""
        return self._thread.submit(self._make, step)

    def _forget(self) -> None:
        """Drop the pending step; if the thread has begun it, its result is ignored."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None


class StepSet:
    """A set of steps that needs constant memory while steps are added in order.

    Args:
        first: The first step that may be added in order.
    """

    def __init__(self, first: int) -> None:
        self._first = self._end = first
        self._others: set[int] = set()

    def __contains__(self, step: int) -> bool:
        return self._first <= step < self._end or step in self._others

    def add(self, step: int) -> None:
        """Add a step; steps that join the contiguous range are merged into it."""
        self._others.add(step)
        while self._end in self._others:
            self._others.remove(self._end)
            self._end += 1


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


@dataclass(frozen=True)
class Independent:
    """Independent normals in each step: the Gaussian mechanism, in float32.

    Example:
        >>> from dpaudit.trainer.noise.randomness import Keystream
        >>> context = NoiseContext(Keystream.seeded(0), step=0)
        >>> Independent().deviation(2.0, 0.5, dimension=10, context=context)
        1.0
    """

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
        drawn = standard_normals(context, count_coordinates(sums), _device(sums))
        return _add_scaled(sums, drawn, noise_multiplier * norm)


class Prefetched:
    """The noise of ``Independent``, drawn in a thread while the previous step is computed.

    Example:
        >>> import torch
        >>> from dpaudit.trainer.noise.randomness import Keystream
        >>> context = NoiseContext(Keystream.seeded(0), step=0)
        >>> ahead = Prefetched().add_noise({"w": torch.zeros(3)}, context, 1.0, 1.0)
        >>> plain = Independent().add_noise({"w": torch.zeros(3)}, context, 1.0, 1.0)
        >>> torch.equal(ahead["w"], plain["w"])
        True
    """

    def __init__(self) -> None:
        self._prefetcher: NoisePrefetcher | None = None
        self._stream: Keystream | None = None
        self._dimension = 0

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
        """Add the prefetched normals of this step, of deviation noise_multiplier * norm.

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
        # Another dimension means other trainable parameters. Noise that was prefetched for this
        # step but never handed out is dropped together with its prefetcher.
        usable = self._stream is context.stream and self._dimension == count_coordinates(sums)
        if self._prefetcher is None or not usable:
            self._prefetcher, self._stream = self._start(sums, context), context.stream
            self._dimension = count_coordinates(sums)
        return _add_scaled(sums, self._prefetcher.take(context.step), noise_multiplier * norm)

    @staticmethod
    def _start(sums: GradientSums, context: NoiseContext) -> NoisePrefetcher:
        """Return a prefetcher that begins with the noise of this step."""
        dimension, device = count_coordinates(sums), _device(sums)
        stream, first = context.stream, context.first
        return NoisePrefetcher(
            lambda step: standard_normals(NoiseContext(stream, step, first), dimension, device),
            first=context.step,
        )


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
        dimension = count_coordinates(sums)
        flat = torch.cat([part.flatten() for part in sums.values()])
        noisy = grid_noise.add_rounded_noise(
            flat,
            context.stream,
            Purpose.GRADIENT_NOISE,
            context.step,
            deviation=self.deviation(noise_multiplier, norm, dimension, context),
            grid=grid_noise.grid_spacing(norm, dimension),
        )
        return _split_by_parameter(noisy, sums)


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
        return _add_scaled(sums, self._make(context, sums), noise_multiplier * norm)

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


def _add_scaled(sums: GradientSums, drawn: Tensor, deviation: float) -> GradientSums:
    """Add consecutive draws, times ``deviation``, to the sums in place."""
    start = 0
    for part in sums.values():
        own = drawn[start : start + part.numel()].view_as(part)
        part.add_(own, alpha=deviation)
        start += part.numel()
    return sums


def _split_by_parameter(flat: Tensor, sums: Mapping[str, Tensor]) -> GradientSums:
    """Split a flat tensor into parts named and shaped like ``sums``."""
    parts = torch.split(flat, [part.numel() for part in sums.values()])
    return {name: own.view_as(part) for (name, part), own in zip(sums.items(), parts, strict=True)}
