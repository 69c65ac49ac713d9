"""Records of several rows: averaged, then clipped once; whose they are, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpaudit.trainer.batches.grouped_records import RecordGroups, Users, Views, average_row_losses
from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.engine.batch_structure import Batch, map_tensors
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument
from tests.trainer.engine.networks import LAYERS, Network, cross_entropies, layered, on_tokens
from tests.trainer.engine.oracle import per_record, relative_gap

CLIP_NORM = 0.3
ROWS = 3
ROUNDING = 1e-5  # of float32 sums, relative

MODELS: dict[str, Network] = {
    "linear": LAYERS["linear of the trainer"],
    "mlp": LAYERS["mlp"],
    "cnn": LAYERS["colour cnn of the trainer"],
    "linear on a sequence": LAYERS["linear on a sequence"],
    "conv1d": layered(lambda: [nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.Tanh()], 4, 8),
    "conv2d": layered(lambda: [nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()], 3, 5, 5),
    "group norm": layered(lambda: [nn.Conv1d(4, 6, 3), nn.GroupNorm(3, 6), nn.Tanh()], 4, 6),
    "layer norm": layered(lambda: [nn.LayerNorm(6), nn.Tanh()], 4, 6),
    "embedding": on_tokens(lambda: [nn.Embedding(11, 6), nn.Tanh()]),
}


def bags_of(network: Network, records: int, rows: int = ROWS) -> tuple[nn.Module, RecordGroups]:
    """Return a model and bags with weights that differ, some of them 0."""
    built = network.build(records * rows)
    apart = map_tensors(
        built.batch, lambda tensor: tensor.reshape(records, rows, *tensor.shape[1:])
    )
    weights = torch.rand(records, rows)
    weights[0, -1] = 0
    return built.model, RecordGroups(apart, weights / weights.sum(dim=1, keepdim=True))


def slow_loss(model: nn.Module, groups: RecordGroups) -> Tensor:
    """One row at a time, in a loop."""
    losses = []
    for record, weights in enumerate(groups.weights):
        rows = map_tensors(groups.rows, lambda tensor, n=record: tensor[n])
        own = [
            weight
            * cross_entropies(model, map_tensors(rows, lambda tensor, n=n: tensor[n : n + 1]))[0]
            for n, weight in enumerate(weights)
        ]
        losses.append(torch.stack(own).sum())
    return torch.stack(losses)


# Averaged, then clipped.


@pytest.mark.parametrize("name", MODELS)
def test_a_bags_gradient_is_that_of_its_rows_average_loss_clipped_once_and_by_rule(
    name: str,
) -> None:
    model, groups = bags_of(MODELS[name], records=5)
    engine = Engine(model, average_row_losses(cross_entropies))
    clipped = engine.clipped_sum(groups, Flat(CLIP_NORM))
    truth = per_record(model, slow_loss, groups)
    assert (truth.norms > CLIP_NORM).any()
    assert relative_gap(clipped.sums, truth.clipped_sum(Flat(CLIP_NORM))) < ROUNDING
    assert torch.allclose(clipped.norms, truth.norms, rtol=ROUNDING)
    assert engine.record_by_record == ()


@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_parts_of_a_batch_of_bags_add_up(name: str) -> None:
    model, groups = bags_of(MODELS[name], records=5)
    engine = Engine(model, average_row_losses(cross_entropies))
    whole = engine.clipped_sum(groups, Flat(CLIP_NORM)).sums
    for chunk in (1, 2):
        parts = engine.clipped_sum(groups, Flat(CLIP_NORM), chunk).sums
        assert relative_gap(parts, {name: g.double() for name, g in whole.items()}) < ROUNDING


@pytest.mark.parametrize("name", ["mlp", "conv2d"])
def test_the_order_of_rows_is_irrelevant(name: str) -> None:
    model, groups = bags_of(MODELS[name], records=4)
    order = torch.stack([torch.randperm(ROWS) for _ in range(4)])

    def reordered(tensor: Tensor) -> Tensor:
        return torch.stack([row[own] for row, own in zip(tensor, order, strict=True)])

    engine = Engine(model, average_row_losses(cross_entropies))
    one = engine.clipped_sum(groups, Flat(CLIP_NORM)).sums
    other = engine.clipped_sum(map_tensors(groups, reordered), Flat(CLIP_NORM)).sums
    assert relative_gap(other, {name: g.double() for name, g in one.items()}) < ROUNDING


def test_a_row_of_weight_zero_only_fills_the_place() -> None:
    model, groups = bags_of(MODELS["mlp"], records=4)
    groups.weights[:, -1] = 0
    filled = RecordGroups(map_tensors(groups.rows, lambda tensor: tensor.clone()), groups.weights)
    filled.rows[0][:, -1] = 1e3
    engine = Engine(model, average_row_losses(cross_entropies))
    one = engine.clipped_sum(groups, Flat(CLIP_NORM)).sums
    other = engine.clipped_sum(filled, Flat(CLIP_NORM)).sums
    assert relative_gap(other, {name: g.double() for name, g in one.items()}) < ROUNDING


def test_record_group_with_nonfinite_row_is_excluded() -> None:
    model, groups = bags_of(MODELS["mlp"], records=4)
    groups.rows[0][1, 0] = torch.inf
    clipped = Engine(model, average_row_losses(cross_entropies)).clipped_sum(
        groups, Flat(CLIP_NORM)
    )
    others = map_tensors(groups, lambda tensor: tensor[[0, 2, 3]])
    expected = per_record(model, slow_loss, others).clipped_sum(Flat(CLIP_NORM))
    assert clipped.left_out == 1
    assert relative_gap(clipped.sums, expected) < ROUNDING


def test_a_loss_that_is_already_averaged_is_refused() -> None:
    model, groups = bags_of(MODELS["linear"], records=4)
    with pytest.raises(InvalidArgument, match="reduction='none'"):
        average_row_losses(lambda net, batch: cross_entropies(net, batch).mean())(model, groups)


# Views.


def turned(batch: Batch) -> Batch:
    """Flip each record by its own coin."""
    x, y = batch
    coins = torch.rand(len(x)) < 0.5
    return torch.where(coins[:, None], x.flip(1), x), y


def noised_in_place(batch: Batch) -> Batch:
    x, y = batch
    x.add_(torch.randn_like(x))
    return x, y


def blended(batch: Batch) -> Batch:
    x, y = batch
    return (x + x[torch.randperm(len(x))]) / 2, y


def centred(batch: Batch) -> Batch:
    x, y = batch
    return x - x.mean(dim=0), y


def last_two_blended(batch: Batch) -> Batch:
    x, y = batch
    return torch.cat([x[:-1], x[-1:] + x[-2:-1]]), y


def sorted_by_label(batch: Batch) -> Batch:
    x, y = batch
    order = y.argsort()
    return x[order], y[order]


def without_the_last(batch: Batch) -> Batch:
    return map_tensors(batch, lambda tensor: tensor[:-1])


def twice(batch: Batch) -> Batch:
    return map_tensors(batch, lambda tensor: torch.cat([tensor, tensor]))


def records_of(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 6, generator=generator)
    return x, (count - torch.arange(count)) % 3


@pytest.mark.parametrize("augment", [turned, noised_in_place])
@pytest.mark.parametrize("records", [0, 1, 2, 7])
def test_views_of_each_record_by_itself_pass(
    augment: Callable[[Batch], Batch], records: int
) -> None:
    groups = Views(augment, 4)(records_of(records))
    x, y = groups.rows
    assert (x.shape, y.shape) == ((records, 4, 6), (records, 4))
    assert torch.equal(groups.weights, torch.full((records, 4), 0.25))
    assert torch.equal(y, records_of(records)[1][:, None].expand(-1, 4))


def test_views_are_of_their_own_record_and_differ() -> None:
    x, y = records_of(7)
    before = x.clone()
    seen = Views(turned, 16)((x, y)).rows[0]
    assert torch.equal(x, before)
    straight = (seen == x[:, None]).all(dim=2)
    assert (straight | (seen == x.flip(1)[:, None]).all(dim=2)).all()
    assert (straight.any(dim=1) & ~straight.all(dim=1)).any()


@pytest.mark.parametrize("augment", [blended, centred, last_two_blended, sorted_by_label])
@pytest.mark.parametrize("records", [3, 5, 8])
def test_an_augmentation_that_mixes_records_is_refused(
    augment: Callable[[Batch], Batch], records: int
) -> None:
    with pytest.raises(InvalidArgument, match=augment.__name__):
        Views(augment, 2)(records_of(records))


@pytest.mark.parametrize("augment", [without_the_last, twice])
@pytest.mark.parametrize("records", [1, 2, 5])
def test_an_augmentation_that_changes_the_number_of_records_is_refused(
    augment: Callable[[Batch], Batch], records: int
) -> None:
    with pytest.raises(InvalidArgument, match="augment"):
        Views(augment, 2)(records_of(records))


def test_records_that_are_not_finite_do_not_look_mixed() -> None:
    x, y = records_of(5)
    x[1], x[3] = torch.nan, torch.inf
    Views(turned, 2)((x, y))


def test_views_are_averaged_then_clipped() -> None:
    """Not clipped, then averaged: that would differ, and is not what is asked."""
    model, batch = LAYERS["mlp"].build(5).model, records_of(5)
    groups = Views(noised_in_place, 3)(batch)
    got = (
        Engine(model, average_row_losses(cross_entropies)).clipped_sum(groups, Flat(CLIP_NORM)).sums
    )
    truth = per_record(model, slow_loss, groups)
    assert relative_gap(got, truth.clipped_sum(Flat(CLIP_NORM))) < ROUNDING
    rows = map_tensors(groups.rows, lambda tensor: tensor.flatten(0, 1))
    apart = per_record(model, cross_entropies, rows).clipped_sum(Flat(CLIP_NORM))
    assert relative_gap(got, {name: total / 3 for name, total in apart.items()}) > 0.01


# Users.


OWNERS = st.lists(st.integers(0, 6), min_size=1, max_size=40)
STREAM = Keystream.seeded(1)


@given(OWNERS, st.integers(1, 6), st.integers(0, 50))
def test_every_users_rows_are_its_own_and_weigh_one_together(
    owners: list[int], rows: int, step: int
) -> None:
    users = Users(owners, rows)
    names = sorted(set(owners))
    assert (len(users), users.records) == (len(names), len(owners))
    chosen, weights = users.rows_of(np.arange(len(users)), STREAM, step)
    assert chosen.shape == weights.shape == (len(users), rows)
    for name, own, shares in zip(names, chosen, weights, strict=True):
        assert {owners[record] for record in own} == {name}
        counted = own[shares.numpy() > 0]
        assert len(set(counted)) == len(counted) == min(rows, owners.count(name))
        assert torch.equal(shares[: len(counted)], torch.full((len(counted),), 1 / len(counted)))
        assert not shares[len(counted) :].any()


@given(OWNERS, st.integers(1, 3), st.integers(0, 50), st.data())
def test_a_users_rows_depend_on_key_step_and_user_alone(
    owners: list[int], rows: int, step: int, data: st.DataObject
) -> None:
    users = Users(owners, rows)
    together, weights = users.rows_of(np.arange(len(users)), STREAM, step)
    some = data.draw(st.lists(st.integers(0, len(users) - 1), unique=True))
    alone, own_weights = users.rows_of(np.array(some, dtype=np.int64), STREAM, step)
    assert np.array_equal(alone, together[some])
    assert torch.equal(own_weights, weights[some])


def test_other_steps_keys_and_users_draw_other_rows() -> None:
    users = Users([0] * 100 + [1] * 100, 10)

    def drawn(user: int, seed: int, step: int) -> set[int]:
        chosen, _ = users.rows_of(np.array([user]), Keystream.seeded(seed), step)
        return {int(record) % 100 for record in chosen[0]}

    first = drawn(0, 1, 0)
    assert first not in (drawn(0, 1, 1), drawn(0, 2, 0), drawn(1, 1, 0))


def test_every_record_of_a_user_is_drawn_as_often_as_any_other() -> None:
    users, steps = Users([0] * 12, 3), 2000
    counts = np.zeros(12)
    for step in range(steps):
        counts[users.rows_of(np.array([0]), STREAM, step)[0][0]] += 1
    # Chi-squared of 11 degrees, beyond which lies one in a million; draws without
    # replacement vary less than that.
    expected = steps * 3 / 12
    assert ((counts - expected) ** 2 / expected).sum() < 48.8


@pytest.mark.parametrize("owners", [["b", "a", "b"], [2.5, -1.0, 2.5], np.array([7, 3, 7])])
def test_anything_that_sorts_can_own_a_record(owners: list[object]) -> None:
    chosen, _ = Users(owners, 2).rows_of(np.array([0, 1]), STREAM, 0)
    assert [sorted(set(own)) for own in chosen.tolist()] == [[1], [0, 2]]


def test_users_without_rows_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="rows"):
        Users([0, 1], 0)


@given(
    owners=st.lists(st.integers(0, 3), min_size=4, max_size=14),
    rows=st.integers(1, 4),
    size=st.floats(0.01, 100),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_a_user_with_all_records_moves_the_sum_by_the_clip_norm_at_most(
    owners: list[int], rows: int, size: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x, y = size * torch.randn(len(owners), 6), torch.randint(0, 3, (len(owners),))
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def clipped_sum(kept: list[int]) -> Tensor:
        users = Users([owners[record] for record in kept], rows)
        # A user's number must not move with the others: it chooses the rows.
        chosen, weights = users.rows_of(np.arange(len(users)), STREAM, 0)
        which = torch.tensor(kept)[torch.from_numpy(chosen)]
        groups = RecordGroups((x[which].double(), y[which]), weights.double())
        sums = (
            Engine(model, average_row_losses(cross_entropies))
            .clipped_sum(groups, Flat(CLIP_NORM))
            .sums
        )
        return torch.cat([part.flatten() for part in sums.values()])

    last = max(owners)
    others = [record for record, owner in enumerate(owners) if owner != last]
    moved = clipped_sum(list(range(len(owners)))) - (clipped_sum(others) if others else 0)
    assert float(moved.norm()) <= CLIP_NORM
