"""Per-record losses of the model heads that Hugging Face ``Trainer`` trains on a mean loss.

Each is computed from logits and labels, one mean per record over its own tokens. A mean over the
batch is never divided: its gradients are those of no record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from dpaudit.trainer.engine.batch_structure import count_records, slice_records
from dpaudit.vocabulary.errors import InvalidArgument

IGNORED = -100
"""Label of a token without a loss."""
AGREEMENT = 0.02
"""Largest relative difference to the model's own loss: float16 and bfloat16 sums differ."""

Fields = Mapping[str, Any]
HeadLoss = Callable[[Fields, Fields, float], Tensor]
"""Maps outputs, inputs and label smoothing to losses, shape ``(records,)``."""


def token_losses(outputs: Fields, inputs: Fields, smoothing: float, *, shift: bool) -> Tensor:
    """Return each record's mean cross entropy over its labeled tokens.

    Args:
        outputs: ``logits``, shape ``(records, tokens, vocabulary)``.
        inputs: ``labels``, shape ``(records, tokens)``.
        smoothing: Label smoothing, in [0, 1).
        shift: Whether the logits of a token predict the next one.

    Returns:
        Losses, shape ``(records,)``; 0 for a record without a labeled token.
    """
    logits, labels = outputs["logits"].float(), inputs["labels"]
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    each = cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        reduction="none",
        label_smoothing=smoothing,
        ignore_index=IGNORED,
    )
    labeled = (labels != IGNORED).sum(dim=1)
    mean: Tensor = each.view(labels.shape).sum(dim=1) / labeled.clamp(min=1)
    return mean


def sequence_losses(outputs: Fields, inputs: Fields, smoothing: float, *, kind: str) -> Tensor:
    """Return each record's loss of a head with one output per record.

    Args:
        outputs: ``logits``, shape ``(records, labels)``.
        inputs: ``labels``: classes of shape ``(records,)``, or values like the logits.
        smoothing: Label smoothing, in [0, 1), of classes.
        kind: ``problem_type`` of the model's configuration; empty: decided by the labels.

    Returns:
        Losses, shape ``(records,)``.
    """
    logits, labels = outputs["logits"].float(), inputs["labels"]
    if not kind and logits.shape[1] > 1:
        whole = not labels.is_floating_point()
        kind = "single_label_classification" if whole else "multi_label_classification"
    if kind == "single_label_classification":
        return cross_entropy(logits, labels.view(-1), reduction="none", label_smoothing=smoothing)
    measure = binary_cross_entropy_with_logits if kind == "multi_label_classification" else mse_loss
    each = measure(logits, labels.view(logits.shape).to(logits.dtype), reduction="none")
    return each.mean(dim=1)


def answer_losses(outputs: Fields, inputs: Fields, smoothing: float) -> Tensor:
    """Return each record's mean loss of the first and last position of an answer.

    Args:
        outputs: ``start_logits`` and ``end_logits``, shape ``(records, tokens)``.
        inputs: ``start_positions`` and ``end_positions``, shape ``(records,)``.
        smoothing: Label smoothing, in [0, 1).

    Returns:
        Losses, shape ``(records,)``; 0 for an answer outside of the tokens.
    """
    ends = []
    for name in ("start", "end"):
        logits = outputs[f"{name}_logits"].float()
        tokens = logits.shape[1]
        places = inputs[f"{name}_positions"].view(-1).clamp(0, tokens)
        ends.append(
            cross_entropy(
                logits, places, reduction="none", label_smoothing=smoothing, ignore_index=tokens
            )
        )
    return (ends[0] + ends[1]) / 2


@dataclass(frozen=True)
class RecordByRecord:
    """A loss function of a whole batch, called with the outputs and labels of one record at a time.

    Attributes:
        compute: ``compute_loss_func`` of the Trainer: (outputs, labels, num_items_in_batch) to a
            mean loss.
    """

    compute: Callable[..., Tensor]

    def __call__(self, outputs: Fields, inputs: Fields, smoothing: float) -> Tensor:
        """Return the loss of each record.

        Args:
            outputs: Outputs of the model; what has no row per record is left out.
            inputs: Inputs of the model.
            smoothing: Label smoothing, which the function itself has to apply.

        Returns:
            Losses, shape ``(records,)``.
        """
        records = count_records(inputs)
        tensors = {
            name: part
            for name, part in outputs.items()
            if isinstance(part, Tensor) and part.ndim and len(part) == records
        }
        own = [
            self.compute(
                type(outputs)(**{name: part[i : i + 1] for name, part in tensors.items()}),
                inputs["labels"][i : i + 1] if "labels" in inputs else None,
                num_items_in_batch=None,
            )
            for i in range(records)
        ]
        return torch.stack([loss.reshape(()) for loss in own]) if own else torch.zeros(0)


@dataclass(frozen=True)
class ModelLoss:
    """The per-record loss of a model that returns its outputs as a mapping.

    Attributes:
        head: The loss of its head.
        smoothing: Label smoothing, in [0, 1).
        gives_labels: Whether the model needs the labels, as to make the inputs of a decoder.
        is_own: Whether the model computes this loss, too, as a mean over the batch.
    """

    head: HeadLoss
    smoothing: float = 0.0
    gives_labels: bool = False
    is_own: bool = True

    def __call__(self, model: nn.Module, inputs: Fields) -> Tensor:
        """Return the loss of each record.

        Args:
            model: The model.
            inputs: Its inputs by name, records first.

        Returns:
            Losses, shape ``(records,)``.
        """
        given = {n: part for n, part in inputs.items() if n != "labels" or self.gives_labels}
        return self.head(model(**given, return_dict=True), inputs, self.smoothing)

    def agrees_with(self, model: nn.Module, inputs: Fields) -> bool:
        """Compare the loss of the first record with the mean that the model itself returns.

        Args:
            model: The model.
            inputs: A batch.

        Returns:
            True if they are equal, or the loss is not the model's own; False for an empty batch
            or a record without a loss.

        Raises:
            InvalidArgument: If they differ: the model's loss is another one, or has further terms.
        """
        if not self.is_own:
            return True
        if not count_records(inputs):
            return False
        first = slice_records(inputs, 0, 1)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = model(**first, return_dict=True)
            own = outputs["loss"].float().reshape(-1)
            found = self.head(outputs, first, 0.0)
        if not bool(torch.isfinite(own).all()):
            return False
        if not torch.allclose(found, own, rtol=AGREEMENT, atol=AGREEMENT / 10):
            raise _unknown(model, f"its own loss is {float(own):.4g}, not {float(found):.4g}")
        return True


def loss_of_model(
    model: nn.Module, smoothing: float, compute: Callable[..., Tensor] | None = None
) -> ModelLoss:
    """Return the per-record loss of a model of transformers, by the kind of its head.

    Args:
        model: The model, or one with adapters of peft.
        smoothing: Label smoothing, in [0, 1).
        compute: ``compute_loss_func`` of the Trainer, in place of the loss of the head.

    Returns:
        The per-record loss.

    Raises:
        InvalidArgument: If the loss of its head is not known.
    """
    if compute is not None:
        return ModelLoss(RecordByRecord(compute), is_own=False)
    base = getattr(model, "get_base_model", None)
    model = model if base is None else base()
    config = getattr(model, "config", None)
    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    kind = getattr(model, "loss_type", "") or "ForCausalLM"  # as transformers does
    if kind in {"ForCausalLM", "ForConditionalGeneration"}:
        return ModelLoss(partial(token_losses, shift=not seq2seq), smoothing, seq2seq)
    if kind in {"ForMaskedLM", "ForTokenClassification"}:
        return ModelLoss(partial(token_losses, shift=False), smoothing)
    if kind in {"ForSequenceClassification", "ForImageClassification", "ForAudioClassification"}:
        problem = cast(str, getattr(config, "problem_type", None) or "")
        return ModelLoss(partial(sequence_losses, kind=problem), smoothing, seq2seq)
    if kind == "ForQuestionAnswering":
        return ModelLoss(answer_losses, smoothing, seq2seq)
    raise _unknown(model, f"its loss is {kind}")


def _unknown(model: nn.Module, why: str) -> InvalidArgument:
    """Return the error for a model whose per-record loss is not known."""
    allowed = (
        "language model, token or sequence classifier, or question answering, "
        f"or given with per_record_loss=, (model, inputs) to losses of shape (records,): {why}"
    )
    return InvalidArgument("model", type(model).__name__, f"a {allowed}")
