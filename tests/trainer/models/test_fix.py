"""``fix`` replaces what mixes records, says so, and what it returns trains privately."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.engine.independence import require_independent_losses
from dpaudit.trainer.models.fix import fix
from dpaudit.vocabulary.errors import InvalidArgument

MODELS = {
    "images": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        (3, 8, 8),
    ),
    "odd channels": (nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)), (3, 8, 8)),
    "one channel": (nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1)), (3, 8, 8)),
    "one dimension": (nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)), (6,)),
    "one feature": (nn.Sequential(nn.Linear(6, 1), nn.BatchNorm1d(1), nn.Linear(1, 4)), (6,)),
    "sequences": (nn.Sequential(nn.Conv1d(4, 5, 2), nn.BatchNorm1d(5)), (4, 9)),
    "volumes": (nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4, affine=False)), (2, 4, 4, 4)),
    "statistics": (nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True)), (4, 9)),
}


def total(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch).flatten(1)
    return out.square().sum(dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_fixed_keeps_records_apart_and_still_tells_them_apart(name: str) -> None:
    torch.manual_seed(1)
    model, shape = MODELS[name]
    repaired = fix(model)
    batch = torch.randn(5, *shape)
    require_independent_losses(repaired.model, total, batch)
    out = repaired.model(batch)
    assert out.shape == model(batch).shape
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_every_change_is_reported_by_its_place() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(64)), nn.ReLU(inplace=True)
    )
    assert fix(model).changes == (
        "Sequential.0.0: BatchNorm2d is now GroupNorm of 1 group "
        "(scale and shift alone below 8 values)",
        "Sequential.0.1: BatchNorm2d is now GroupNorm of 4 groups",
        "Sequential.1: ReLU no longer works in place",
    )


def test_suitable_model_is_unchanged() -> None:
    assert fix(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))).changes == ()


def test_given_model_is_unchanged() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    fix(model)
    assert isinstance(model[0], nn.BatchNorm1d)


def test_scale_and_shift_are_kept() -> None:
    norm = nn.BatchNorm1d(4)
    nn.init.normal_(norm.weight)
    repaired = fix(nn.Sequential(norm)).model
    assert isinstance(repaired, nn.Sequential)
    assert torch.equal(repaired[0].weight, norm.weight)


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 12, 31, 64, 96, 512, 1000])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_features_without_space_keep_their_values(kind: type[nn.Module], channels: int) -> None:
    torch.manual_seed(0)
    fixed = fix(nn.Sequential(kind(channels))).model  # type: ignore[call-arg]
    batch = torch.randn(400, channels, *(1 for _ in range(KINDS[kind])))
    out = fixed(batch)
    # A group of two would give 1 and -1, a group of one 0, of three a point on a circle.
    binary = ((out.abs() - 1).abs() < 0.02) | (out.abs() < 1e-6)
    assert float(binary.float().mean()) < 0.1
    flat = out.reshape(len(batch), -1)
    assert int((flat.round(decimals=6).unique(dim=0)).shape[0]) > 390


KINDS: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 0,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.SyncBatchNorm: 2,
}


class ActivatedNorm(nn.BatchNorm2d):
    """Batch normalization with dropout and an activation inside, as vision libraries have it."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(0.25)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        batch = self.training or self.running_mean is None
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, batch, 0.1, self.eps
        )
        out: Tensor = self.act(self.drop(x))
        return out


def test_what_a_subclass_applies_afterwards_is_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ActivatedNorm(32, nn.ReLU(inplace=True)))
    fixed = fix(model)
    assert fixed.changes == (
        "Sequential.0: ActivatedNorm is now GroupNorm of 2 groups, "
        "followed by its own drop and act",
        "Sequential.0.act: ReLU no longer works in place",
    )
    batch = torch.randn(7, 32, 5, 5)
    plain = nn.functional.group_norm(batch, 2)
    assert torch.allclose(fixed.model.eval()(batch), plain.relu(), atol=1e-6)
    torch.manual_seed(3)
    dropped = nn.functional.dropout(plain, 0.25)
    torch.manual_seed(3)
    assert torch.allclose(fixed.model.train()(batch), dropped.relu(), atol=1e-6)


class Renamed(nn.BatchNorm1d):
    """A subclass that changes nothing."""


def test_a_subclass_with_the_same_forward_is_replaced() -> None:
    assert fix(Renamed(64)).changes == ("Renamed: Renamed is now GroupNorm of 1 group",)


class Scaled(nn.BatchNorm2d):
    """Multiplies by a parameter that starts at one."""

    def __init__(self) -> None:
        super().__init__(4)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class Shortcut(nn.BatchNorm2d):
    """Adds its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


def overridden() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    norm.forward = lambda x: x.relu()  # type: ignore[method-assign, assignment]
    return norm


REFUSED = {
    "a parameter of its own": (Scaled(), "Scaled at Sequential.0"),
    "its input again": (Shortcut(4), "Shortcut at Sequential.0"),
    "a forward of the object": (overridden(), "BatchNorm1d at Sequential.0"),
    "lazy": (nn.LazyBatchNorm2d(), "run the model once"),
    "lazy statistics": (nn.LazyInstanceNorm2d(track_running_stats=True), "run the model once"),
    "parametrized": (
        nn.utils.parametrize.register_parametrization(nn.BatchNorm1d(4), "weight", nn.Tanh()),
        "remove its parametrization",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused(name: str) -> None:
    norm, text = REFUSED[name]
    with pytest.raises(InvalidArgument, match=text):
        fix(nn.Sequential(norm))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.computed = model.weight * 2  # type: ignore[assignment]  # no leaf: torch copies none
    with pytest.raises(InvalidArgument, match="deepcopy"):
        fix(model)


def test_every_use_of_a_tied_module_is_replaced() -> None:
    norm = nn.BatchNorm1d(32)
    model = nn.Sequential(norm, nn.Linear(32, 32), norm, nn.Sequential(norm))
    model.aliases = [norm]  # type: ignore[assignment]  # a list that torch does not see
    fixed = fix(model)
    assert fixed.changes == (
        "Sequential.0 and Sequential.2 and Sequential.3.0: BatchNorm1d is now GroupNorm of 1 group",
    )
    (alias,) = fixed.model.aliases
    assert isinstance(fixed.model, nn.Sequential)
    assert alias is fixed.model[0] is fixed.model[2] is fixed.model[3][0]
    assert isinstance(alias, nn.GroupNorm)


def test_parameters_hooks_and_saved_names_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    seen: list[int] = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    fixed = fix(model).model
    fixed(torch.randn(2, 3, 6, 6))
    assert seen == [1]
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in fixed.named_parameters()] == names == list(fixed.state_dict())


def test_buffers_that_no_record_changes_are_kept() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))
    fixed = fix(model)
    assert fixed.changes == ()
    assert fixed.model.state_dict().keys() == model.state_dict().keys()


def test_a_fixed_model_can_be_saved_as_a_whole(tmp_path: Path) -> None:
    fixed = fix(nn.Sequential(nn.BatchNorm1d(16))).model
    torch.save(fixed, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    batch = torch.randn(3, 16)
    assert torch.equal(again(batch), fixed(batch))


@pytest.mark.parametrize("records", [1, 2, 5])
def test_every_refusal_of_batch_normalization_names_fix(records: int) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(InvalidArgument, match=r"dpaudit\.trainer\.fix"):
        Engine(model, total).clipped_sum(torch.randn(records, 5), Flat(1.0))
