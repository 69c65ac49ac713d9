"""The name that ``PrivateTrainerFactory`` had before version 2.0."""

from dpaudit.trainer.conformance_trainers import PrivateTrainerFactory

Workbench = PrivateTrainerFactory
