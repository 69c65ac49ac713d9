"""Outputs of a user's model that hold no numbers: typed errors, which name the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dpaudit.attacks.membership.target_models.torch_model import RECORDS_PER_CALL, TorchModel
from dpaudit.vocabulary.errors import InvalidArgument, UserCodeError

FEATURES = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)


def sparse_rows(x: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(size=(len(x), 2))


def sparse_inside(x: Tensor) -> dict[str, Tensor]:
    return {"logits": x[:, :2].to_sparse()}


def of_no_device(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(), torch.empty(len(x), 2, device="meta")


def ends(x: Tensor) -> Tensor:
    raise SystemExit(0)


@pytest.mark.parametrize("model", [sparse_rows, sparse_inside, of_no_device, ends])
def test_an_output_that_cannot_be_copied_is_an_error_of_the_model(
    model: Callable[[Tensor], object],
) -> None:
    with pytest.raises(UserCodeError, match=r"nets:make, of records of shape .4,., raised"):
        TorchModel(model, "nets:make").predict(FEATURES)


@pytest.mark.parametrize(
    "model",
    [lambda x: x > 0, lambda x: [x.sum(), x[:, :2].isnan()], lambda x: x[:, :2].to(torch.cfloat)],
)
def test_outputs_that_are_no_numbers_are_refused(model: Callable[[Tensor], object]) -> None:
    with pytest.raises(InvalidArgument, match="an output of numbers, of shape"):
        TorchModel(model).predict(FEATURES)


def test_a_boolean_output_beside_logits_is_passed_over() -> None:
    model = TorchModel(lambda x: (x > 0, 3 * x))
    assert model.predict(FEATURES) == pytest.approx(3 * FEATURES)


def test_batches_of_other_classes_are_refused() -> None:
    features = np.zeros((RECORDS_PER_CALL + 3, 4), np.float32)
    with pytest.raises(InvalidArgument, match=r"same number of classes .* of \[2, 4\] classes"):
        TorchModel(lambda x: x if len(x) == RECORDS_PER_CALL else x[:, :2]).predict(features)
