"""Batches with parts that are no tensors: split per record, or refused."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence

from dpaudit.trainer.batches.grouped_records import (
    RecordGroups,
    Users,
    Views,
    average_row_losses,
)
from dpaudit.trainer.data_sources.batch_source import make_batch_source
from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.engine.batch_structure import (
    concatenate_batches,
    count_records,
    describe_structure,
    duplicate_record,
    fold_rows,
    slice_records,
    take_records,
    unfold_rows,
)
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument
from tests.trainer.engine.oracle import per_record, relative_gap

CLIP = Flat(0.3)
RECORDS = 9
WORDS = ["".join(chr(97 + (i * i + 7 * k) % 26) for k in range(4)) for i in range(RECORDS)]


def numbers_of(texts: Any) -> Tensor:
    return torch.tensor([[ord(letter) / 100 for letter in text] for text in texts])


def losses(model: nn.Module, texts: Any, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(numbers_of(texts)), y, reduction="none")


@dataclass(frozen=True)
class Texts:
    texts: list[str]
    y: Tensor
    kind: str = "texts"


class Pair(NamedTuple):
    texts: list[str]
    y: Tensor


Y = torch.arange(RECORDS) % 3

KINDS: dict[str, tuple[Any, Any]] = {
    "strings": (
        {"text": WORDS, "y": Y}, lambda model, batch: losses(model, batch["text"], batch["y"])),
    "a tuple of strings": (
        (tuple(WORDS), Y), lambda model, batch: losses(model, *batch)),
    "tuples": (
        ([(word, n) for n, word in enumerate(WORDS)], Y),
        lambda model, batch: losses(model, [word for word, _ in batch[0]], batch[1])),
    "dicts": (
        ([{"a": word[:2], "b": word[2:]} for word in WORDS], Y),
        lambda model, batch: losses(model, [each["a"] + each["b"] for each in batch[0]], batch[1])),
    "none at times": (
        ([word if n % 2 else None for n, word in enumerate(WORDS)], Y, None),
        lambda model, batch: losses(model, [word or "aaaa" for word in batch[0]], batch[1])),
    "an array": (
        (np.array(WORDS), Y.numpy()),
        lambda model, batch: losses(model, batch[0].tolist(), torch.from_numpy(batch[1]))),
    "an array of numbers": (
        (numbers_of(WORDS).numpy(), Y),
        lambda model, batch: functional.cross_entropy(
            model(torch.from_numpy(batch[0])), batch[1], reduction="none")),
    "a named tuple": (Pair(WORDS, Y), lambda model, batch: losses(model, batch.texts, batch.y)),
    "a dataclass": (Texts(WORDS, Y), lambda model, batch: losses(model, batch.texts, batch.y)),
    "an ordered dict": (
        OrderedDict(text=WORDS, y=Y),
        lambda model, batch: losses(model, *batch.values()) * isinstance(batch, OrderedDict)),
    "a default dict": (
        defaultdict(list, text=WORDS, y=Y),
        lambda model, batch: losses(model, batch["text"], batch.pop("y")) + len(batch["absent"])),
    "a user's dict": (
        UserDict(text=WORDS, y=Y),
        lambda model, batch: losses(model, *batch.data.values())),
    "labels as numbers": (
        {"text": WORDS, "y": Y.tolist()},
        lambda model, batch: losses(model, batch["text"], torch.tensor(batch["y"]))),
    "strings alone": (
        WORDS, lambda model, batch: losses(model, batch, numbers_of(batch)[:, 0].long())),
}  # fmt: skip


@pytest.mark.parametrize("chunk", [None, 4, 1])
@pytest.mark.parametrize("name", KINDS)
def test_each_record_has_its_own_entry(name: str, chunk: int | None) -> None:
    batch, loss = KINDS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 3))
    engine = Engine(model, loss)
    truth = per_record(model, loss, batch).clipped_sum(CLIP)
    for _ in range(2):
        assert relative_gap(engine.clipped_sum(batch, CLIP, chunk).sums, truth) < 1e-5
    nothing = engine.clipped_sum(slice_records(batch, 0, 0), CLIP)
    assert not any(total.any() for total in nothing.sums.values())


def test_entries_that_meet_are_seen() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return losses(model, [batch[0][0]] * len(batch[0]), batch[1])

    with pytest.raises(InvalidArgument, match="mix records"):
        Engine(nn.Linear(4, 3), loss).clipped_sum((WORDS, Y), CLIP)


@pytest.mark.parametrize(
    "other",
    ["abc", b"abc", 3, 0.5, object(), {1, 2}, (n for n in range(3)), range(RECORDS), deque(WORDS),
     np.float32(1.0), np.array(3), torch.nn.Linear(1, 1)],
)  # fmt: skip
def test_other_parts_are_refused_by_their_type(other: Any) -> None:
    for batch in ((torch.zeros(RECORDS, 4), other), {"x": torch.zeros(RECORDS, 4), "other": other}):
        with pytest.raises(InvalidArgument, match=rf"a {type(other).__name__} in it|-1"):
            Engine(nn.Linear(4, 3), lambda model, batch: model(batch[0])[:, 0]).clipped_sum(
                batch, CLIP)  # fmt: skip


@pytest.mark.parametrize(
    "batch",
    [
        (WORDS[:3], Y),
        {"text": WORDS, "y": Y[:4]},
        (np.zeros((3, 4)), Y),
        ("a", "b"),
        (WORDS, Y.tolist()),
        [WORDS, Y.tolist()],
        (pack_sequence([torch.ones(1, 4), torch.ones(1, 4)]), Y[:2]),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), Y[:2]),
        (),
        None,
        {},
    ],
)
def test_a_batch_without_one_number_of_records_is_refused(batch: Any) -> None:
    with pytest.raises(InvalidArgument, match="batch"):
        count_records(batch)


def test_other_records_are_taken_folded_and_joined_alike() -> None:
    batch = {"text": WORDS, "x": torch.arange(RECORDS), "n": np.arange(RECORDS), "none": None}
    some = take_records(batch, torch.tensor([3, 0, 3]))
    assert some["text"] == [WORDS[3], WORDS[0], WORDS[3]]
    assert some["x"].tolist() == some["n"].tolist() == [3, 0, 3]
    assert some["none"] is None
    apart = fold_rows(batch, 3, 3)
    assert apart["text"][1] == WORDS[3:6]
    assert apart["n"].shape == apart["x"].shape == (3, 3)
    again = unfold_rows(apart)
    assert again["text"] == WORDS
    assert count_records(concatenate_batches(some, batch)) == 3 + RECORDS
    assert duplicate_record(slice_records(batch, 2, 3))["text"] == [WORDS[2]] * 2


# --- data sets


@dataclass
class Counted:
    texts: list[str] = field(default_factory=lambda: list(WORDS))
    y: Tensor = field(default_factory=lambda: Y)


@pytest.mark.parametrize("which", [[], [4], [8, 0]])
def test_data_sets_with_columns_are_indexed_per_record(which: list[int]) -> None:
    wanted = np.array(which, dtype=np.int64)
    for dataset in ({"texts": WORDS, "y": Y}, {"texts": WORDS, "y": Y.tolist()}):
        source = make_batch_source(dataset, None)
        assert source.records == RECORDS
        batch = source(wanted, Keystream.seeded(0), 0)
        assert batch["texts"] == [WORDS[n] for n in which]
    batch = make_batch_source(Counted(), None)(wanted, Keystream.seeded(0), 0)
    assert batch.texts == [WORDS[n] for n in which]


def test_an_empty_batch_of_records_by_index_keeps_its_columns() -> None:
    dataset = [{"text": word, "y": n % 3} for n, word in enumerate(WORDS)]
    take = make_batch_source(dataset, None)
    nothing = take(np.array([], dtype=np.int64), Keystream.seeded(0), 0)
    assert (nothing["text"], nothing["y"].shape) == ([], (0,))
    assert take(np.array([2]), Keystream.seeded(0), 0)["text"] == [WORDS[2]]


def test_lists_side_by_side_are_no_data_set() -> None:
    with pytest.raises(InvalidArgument, match="batch"):
        make_batch_source((WORDS, Y.tolist()), None)


def text_losses(model: nn.Module, batch: Any) -> Tensor:
    return losses(model, batch["text"], batch["y"])


@pytest.mark.parametrize("drawn", [[0, 1, 2], [1], []])
def test_users_records_may_have_columns(drawn: list[int]) -> None:
    users = Users([n % 3 for n in range(RECORDS)], 2)
    source = make_batch_source({"text": WORDS, "y": Y}, users)
    groups = source(np.array(drawn, dtype=np.int64), Keystream.seeded(0), 0)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    loss = average_row_losses(text_losses)
    got = Engine(model, loss).clipped_sum(groups, CLIP).sums
    if drawn:
        assert relative_gap(got, per_record(model, loss, groups).clipped_sum(CLIP)) < 1e-5


def test_views_of_columns_are_of_their_own_record() -> None:
    def doubled_letters(batch: Any) -> Any:
        coins = (torch.rand(len(batch["text"])) < 0.5).tolist()
        texts = [w[::-1] if c else w for w, c in zip(batch["text"], coins, strict=True)]
        return {"text": texts, "y": batch["y"]}

    def sorted_texts(batch: Any) -> Any:
        return {"text": sorted(batch["text"]), "y": batch["y"]}

    groups = Views(doubled_letters, 4)({"text": WORDS, "y": Y})
    assert isinstance(groups, RecordGroups)
    for word, views in zip(WORDS, groups.rows["text"], strict=True):
        assert set(views) <= {word, word[::-1]}
        assert len(views) == 4
    with pytest.raises(InvalidArgument, match="sorted_texts"):
        Views(sorted_texts, 2)({"text": WORDS, "y": Y})


def test_a_structure_shows_the_shape_of_a_record_and_no_number_of_records() -> None:
    batch = {"ids": torch.zeros(7, 5), "text": ["a"] * 7, "pair": (torch.zeros(7), None)}
    assert describe_structure(batch) == (
        "{'ids': tensor of shape (records, 5), 'text': a list, "
        "'pair': (tensor of shape (records), None)}"
    )
    wide = {f"column {number}": torch.zeros(7) for number in range(1000)}
    assert len(describe_structure(wide)) < 500
