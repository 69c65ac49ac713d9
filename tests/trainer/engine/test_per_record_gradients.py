"""Gradients of each record's own loss, by vmap or by a loop."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dpaudit.trainer.engine.per_record_gradients import PerRecordGradients


class Attention(nn.Module):
    """One head, by an operation that ``torch.func.vmap`` runs in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query(tokens)
        return scaled_dot_product_attention(query, query, query)


def test_advice_to_file_an_issue_of_torch_is_not_shown() -> None:
    gradients = PerRecordGradients(
        Attention(), lambda model, batch: model(batch).sum((1, 2, 3)), ["query.weight"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradients._at_once(torch.randn(3, 1, 5, 4))
    assert found[0].shape == (3, 4, 4)
