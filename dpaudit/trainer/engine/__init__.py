"""Sums of clipped per-record gradients, about as fast as plain gradients."""

from dpaudit.trainer.engine.clipping import Automatic, Clipping, Flat, PerLayer
from dpaudit.trainer.engine.functional import PerSampleLoss
from dpaudit.trainer.engine.sums import Clipped, Engine

__all__ = ["Automatic", "Clipped", "Clipping", "Engine", "Flat", "PerLayer", "PerSampleLoss"]
