"""Sums of clipped per-record gradients, in one forward and one backward pass."""

from dpaudit.trainer.engine.clipped_sums import ClippedSums, Engine
from dpaudit.trainer.engine.clipping import Automatic, Clipping, Flat, PerLayer
from dpaudit.trainer.engine.per_record_gradients import PerSampleLoss

__all__ = ["Automatic", "ClippedSums", "Clipping", "Engine", "Flat", "PerLayer", "PerSampleLoss"]
