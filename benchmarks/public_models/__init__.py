"""Public models for benchmarks/models.py: tiny, with random weights, so nothing is downloaded."""

from public_models.adapters import ADAPTED_MODELS
from public_models.speech import SPEECH_MODELS
from public_models.subject import RECORDS, Subject
from public_models.text import TEXT_MODELS
from public_models.vision import IMAGE_MODELS

__all__ = ["MODELS", "RECORDS", "Subject"]

MODELS: dict[str, Subject] = TEXT_MODELS | SPEECH_MODELS | IMAGE_MODELS | ADAPTED_MODELS
