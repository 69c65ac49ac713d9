"""Selective SGD with a guarantee: clipped records, Gaussian noise, and a public selection.

In its turn, a participant takes local steps on the selected coordinates S alone, |S| = k. Let
g_i be the gradient of record i, clipped so that |g_i| <= C over all coordinates. A step releases

    sum over the Poisson sample of (g_i)_S  +  N(0, (z C)^2 I_k).

Derivation of the guarantee.

1. Restricting a vector to S does not increase its norm, so one record moves the sum by at most C.
   For a fixed S, a step is the Gaussian mechanism with noise multiplier z on a Poisson sample.
2. S is a function of the server's state and of public random numbers, both fixed before the turn.
   The server's state is a function of earlier uploads. Each upload is a function of earlier noisy
   sums, so it is post-processing. The selection therefore costs nothing itself.
3. S may depend on earlier releases. Sensitivity and noise multiplier do not depend on S, so each
   step is bounded by the same dominating pair, whatever was released before. Adaptive composition
   of the recorded steps bounds the run (Dong, Roth & Su 2022, Theorem 3.2; for PLD, Zhu, Dong &
   Wang 2022, Theorem 10).
4. The records of a participant enter its own steps alone. What other participants upload depends
   on them through the server's state only, which is post-processing again. So the participant's
   ledger, which records each step before its noise is drawn, bounds what the server, the other
   participants and the readers of the final model learn of one record.

A selection by the largest entries of the participant's own change, as published, is not public:
step 2 would fail. Here the server ranks coordinates by the mean square of what was uploaded for
them. The noise is the same for all coordinates, so a larger mean square suggests a larger
gradient. A share of the coordinates is drawn at random, so that each is tried again.

Noise enters k coordinates instead of d. Its squared norm is k / d of that of DP-SGD.

References:
    Shokri & Shmatikov (2015), ACM CCS 2015.
    Abadi et al. (2016), arXiv:1607.00133, Algorithm 1.
    Dong, Roth & Su (2022), arXiv:1905.02383. Zhu, Dong & Wang (2022), arXiv:2106.08567.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from dpaudit.trainer.federated.dssgd import Upload, largest_positions
from dpaudit.trainer.noise.gaussian_draws import normals
from dpaudit.trainer.noise.gradient_noise import GradientSums, NoiseContext, count_coordinates
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import NoiseKind

__all__ = ["PublicScores", "SelectedEntries", "select_publicly"]

EXPLORED_SHARE = 0.25
"""Share of the selected coordinates that is drawn at random from all others."""


@dataclass(frozen=True)
class PublicScores:
    """Per coordinate, the decayed sum of squared uploads and the decayed number of uploads.

    Attributes:
        squares: Shape ``(d,)``, float64.
        uploads: Shape ``(d,)``, float64.

    Example:
        >>> PublicScores.start(2).mean_squares
        array([inf, inf])
    """

    squares: NDArray[np.float64]
    uploads: NDArray[np.float64]

    @classmethod
    def start(cls, dimension: int) -> PublicScores:
        """Return scores before the first upload.

        Args:
            dimension: Number of coordinates d.

        Returns:
            Scores of zero uploads.
        """
        return cls(np.zeros(dimension), np.zeros(dimension))

    @property
    def mean_squares(self) -> NDArray[np.float64]:
        """Mean squared upload of each coordinate; infinite where there was none yet."""
        tried = self.uploads > 0
        return np.where(tried, self.squares / np.where(tried, self.uploads, 1.0), np.inf)

    def updated(self, upload: Upload, decay: float) -> PublicScores:
        """Return the scores after an upload. Coordinates that it lacks keep theirs.

        Args:
            upload: The uploaded entries.
            decay: beta, in (0, 1].

        Returns:
            The new scores.

        Example:
            >>> upload = Upload(np.array([1]), np.array([2.0], dtype=np.float32))
            >>> PublicScores.start(2).updated(upload, 0.8).mean_squares
            array([inf,  4.])
        """
        squares, uploads, at = self.squares.copy(), self.uploads.copy(), upload.positions
        squares[at] = squares[at] * decay + np.square(upload.values.astype(np.float64))
        uploads[at] = uploads[at] * decay + 1
        return PublicScores(squares, uploads)


def select_publicly(
    scores: PublicScores, count: int, stream: Keystream, turn: int
) -> NDArray[np.int64]:
    """Select coordinates from public scores: the best ones, and a random share of the others.

    Among coordinates of equal score, random ones are selected; so the first turns explore those
    that nobody has uploaded yet.

    Args:
        scores: The server's scores, before the participant's turn.
        count: Number of coordinates, from 1 to d.
        stream: A stream of public random numbers, such as the server's.
        turn: Number of the turn.

    Returns:
        Distinct coordinates in rising order, shape ``(count,)``.

    Raises:
        InvalidArgument: If ``count`` is out of range.

    Example:
        >>> select_publicly(PublicScores.start(5), 5, Keystream.seeded(0), turn=0)
        array([0, 1, 2, 3, 4])
    """
    dimension = len(scores.squares)
    if not 1 <= count <= dimension:
        raise InvalidArgument("count", count, f"from 1 to {dimension}")
    order = np.argsort(stream.words(Purpose.SELECTION_ORDER, turn, dimension), kind="stable")
    ranked = scores.mean_squares[order]  # ties are broken by the random order
    best = order[largest_positions(ranked, count - int(EXPLORED_SHARE * count))]
    others = order[~np.isin(order, best)]
    return np.sort(np.concatenate([best, others[: count - len(best)]])).astype(np.int64)


class SelectedEntries:
    """Gaussian noise on the selected coordinates; all others are released as zero.

    A kind of noise for ``make_private(noise=...)``. Call ``select`` before the first step, and at
    every turn. The optimizer must leave a coordinate of zero gradient as it is: plain SGD does;
    momentum and weight decay do not.

    Args:
        dimension: Number of trainable coordinates d.

    Attributes:
        positions: The selected coordinates, shape ``(k,)``.

    Example:
        >>> noise = SelectedEntries(3)
        >>> noise.select(np.array([1]))
        >>> context = NoiseContext(Keystream.seeded(0), step=0)
        >>> noisy = noise.add_noise({"w": torch.ones(3)}, context, 1.0, 1.0)["w"]
        >>> [value == 0 for value in noisy.tolist()]
        [True, False, True]
    """

    kind: ClassVar[NoiseKind] = NoiseKind.NORMAL

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self.positions: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def select(self, positions: NDArray[np.int64]) -> None:
        """Choose the coordinates of the steps that follow.

        Args:
            positions: Distinct coordinates that depend on public facts and releases alone.

        Raises:
            InvalidArgument: If one is out of range or there twice, or there is none.
        """
        inside = (positions >= 0) & (positions < self._dimension)
        if not len(positions) or not inside.all() or len(np.unique(positions)) != len(positions):
            allowed = f"distinct coordinates from 0 to {self._dimension - 1}, at least one"
            raise InvalidArgument("positions", f"{len(positions)} of them", allowed)
        self.positions = positions.copy()

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, context: NoiseContext
    ) -> float:
        """Return noise_multiplier * norm, the deviation on a selected coordinate.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.
            context: Keystream and step.

        Returns:
            Standard deviation of the noise on one selected coordinate.
        """
        return noise_multiplier * norm

    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Return the selected coordinates with noise of deviation noise_multiplier * norm.

        Args:
            sums: Clipped sums per parameter.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums by the same names; zero outside of the selection.

        Raises:
            InvalidArgument: If the sum has another number of coordinates, or nothing is selected.
        """
        if count_coordinates(sums) != self._dimension:
            raise InvalidArgument(
                "sums", f"{count_coordinates(sums)} coordinates", f"{self._dimension} coordinates"
            )
        if not len(self.positions):
            raise InvalidArgument("positions", "none", "selected before the first step")
        chosen = torch.from_numpy(self.positions)
        whole = torch.cat([part.flatten() for part in sums.values()])
        draws = normals(context.stream, Purpose.GRADIENT_NOISE, context.step, len(chosen))
        noisy = torch.zeros_like(whole)
        noisy[chosen] = whole[chosen] + draws.to(whole.dtype) * (noise_multiplier * norm)
        parts = torch.split(noisy, [part.numel() for part in sums.values()])
        return {
            name: part.view(total.shape)
            for (name, total), part in zip(sums.items(), parts, strict=True)
        }
