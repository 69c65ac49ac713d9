"""DP-SGD: Poisson sampling, clipped per-record gradients, noise once, a public normaliser.

Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, with independent sampling of records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.trainer.adam import AdamCorrected, tell_noise
from dpaudit.trainer.added_noise import AddedNoise, Moment, Sums, size
from dpaudit.trainer.books import Book
from dpaudit.trainer.canaries import Canaries, gradient_canary_sum
from dpaudit.trainer.data import Records
from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.engine.seeding import seed_torch
from dpaudit.trainer.peers import Peers
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.trainer.sharding import set_gradients
from dpaudit.trainer.taps import Tap
from dpaudit.vocabulary.ledger import BookedRelease
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Release
from dpaudit.vocabulary.settings import PrivacySettings, SpeedSettings

GRADIENT_SUM = "gradient sum"
RECORD_COUNT = "record count"


def cross_entropies(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return each record's loss, shape ``(records,)``, of (features, labels)."""
    features, labels = batch
    return nn.functional.cross_entropy(model(features), labels, reduction="none")


def make_optimizer(
    model: nn.Module, name: str, learning_rate: float, momentum: float
) -> torch.optim.Optimizer:
    """Return a standard PyTorch optimizer: what follows the noisy sum is post-processing."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    match name:
        case "adam":
            return torch.optim.Adam(parameters, lr=learning_rate)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=learning_rate)
        case "adam-corrected":
            return AdamCorrected(parameters, lr=learning_rate)
        case _:
            return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)


def release_expected_batch_size(
    records: int, privacy: PrivacySettings, stream: Keystream, ledger: Book
) -> float:
    """Return the public normaliser: the one that was given, else one from a noisy count.

    How many records there are is a secret where one may be added or removed; so the count
    is released like anything else, with noise and booked.
    """
    if privacy.expected_batch_size is not None:
        return privacy.expected_batch_size
    ledger.book(BookedRelease(RECORD_COUNT, Gaussian(privacy.count_noise_multiplier)))
    noise = float(stream.normals(Purpose.COUNT_NOISE, 0, 1)[0])
    count = records + privacy.count_noise_multiplier * noise
    return max(1.0, privacy.sampling_rate * count)


def _release(privacy: PrivacySettings) -> Release:
    """Return what a step releases; a full batch is no sample."""
    noise = Gaussian(privacy.noise_multiplier)
    if privacy.sampling_rate == 1:
        return noise
    return PoissonSampled(noise, privacy.sampling_rate)


@dataclass
class PrivateSgd:
    """The state of one run between two steps.

    Attributes:
        model: What is trained.
        optimizer: Over its parameters.
        records: All that train, input canaries among them.
        canaries: The gradient canaries.
        privacy: What the guarantee depends on.
        speed: What only speed does.
        stream: Where coins and noise come from, the same on every rank.
        ledger: Where releases are booked.
        expected_batch_size: The public constant that the noisy sum is divided by.
        ranks: Who trains.
        noise: What is added.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    records: Records
    canaries: Canaries
    privacy: PrivacySettings
    speed: SpeedSettings
    stream: Keystream
    ledger: Book
    expected_batch_size: float
    ranks: Peers
    noise: AddedNoise

    def __post_init__(self) -> None:
        self._engine = Engine(self.model, cross_entropies)
        self._device = next(self.model.parameters()).device
        self._features = torch.from_numpy(self.records.features)
        self._labels = torch.from_numpy(self.records.labels)

    def step(self, number: int) -> Tap:
        """Take one step; return what it showed of the gradient canaries.

        The release is on disk in the ledger before its noise is drawn. An empty batch
        takes a step like any other.
        """
        privacy = self.privacy
        release = _release(privacy)
        self.ledger.book(BookedRelease(GRADIENT_SUM, release, step=number))
        joined = self._joined(number)
        sums = self._clipped_sums(number, joined)
        self.ranks.add_up(sums)
        moment = Moment(self.stream, number)
        noisy = self.noise.added(sums, moment, privacy.noise_multiplier, privacy.clip_norm)
        # First: what becomes a gradient is divided in place.
        shown = self.canaries.directions.read(noisy) / privacy.clip_norm
        set_gradients(self.model, noisy, self.expected_batch_size)
        deviation = self.noise.deviation(
            privacy.noise_multiplier, privacy.clip_norm, size(sums), moment
        )
        tell_noise(self.optimizer, deviation / self.expected_batch_size)
        self.optimizer.step()
        return Tap(np.asarray(shown, dtype=np.float32), joined)

    def _clipped_sums(self, number: int, joined: NDArray[np.bool_]) -> Sums:
        """Return the sums over the sampled records and canaries."""
        rate, clip_norm = self.privacy.sampling_rate, self.privacy.clip_norm
        drawn = self.stream.coins(Purpose.RECORD_SAMPLING, number, len(self.records), rate)
        batch = torch.from_numpy(self.ranks.share(np.flatnonzero(drawn)))
        records = tuple(part[batch].to(self._device) for part in (self._features, self._labels))
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
            seed_torch(self.stream.seed_for(Purpose.DROPOUT, number) + self.ranks.rank)
            clipped = self._engine.clipped_sum(
                records, Flat(clip_norm), self.speed.physical_batch_size
            )
        canaries = gradient_canary_sum(joined, clip_norm)
        return self.canaries.directions.add(clipped.sums, canaries)

    def _joined(self, number: int) -> NDArray[np.bool_]:
        """Return the canaries in the batch, shape ``(m,)``: the first rank adds them for all."""
        included = self.canaries.gradient_included
        rate = self.privacy.sampling_rate if self.ranks.rank == 0 else 0.0
        return included & self.stream.coins(Purpose.CANARY_SAMPLING, number, len(included), rate)
