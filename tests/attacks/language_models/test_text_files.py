"""Files of texts and token log-probabilities: both formats agree, and broken files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dpaudit.attacks.language_models import text_files
from dpaudit.attacks.language_models.text_files import read_texts, read_token_signals
from dpaudit.attacks.language_models.token_signals import zlib_bytes
from dpaudit.vocabulary.errors import DpauditError, InvalidData, UnreadableFile

LINES = [
    {"id": "a", "member": 1, "text": "to be", "logprobs": [-1.0, -2.5], "mean_logprobs": [-2, -2],
     "std_logprobs": [0.5, 1], "greedy": [True, False], "drawn_logprobs": [-0.5, None],
     "reference_logprobs": [-3.0]},
    {"id": "b", "member": 0, "text": "or not", "logprobs": [-4], "mean_logprobs": [-2.0],
     "std_logprobs": [0.25], "greedy": [False], "drawn_logprobs": [None],
     "reference_logprobs": [-3.0, -1.0]},
]  # fmt: skip


def json_lines(folder: Path, *lines: object) -> Path:
    path = folder / "signals.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def archive(folder: Path, **changed: np.ndarray) -> Path:
    arrays = {
        "id": np.array(["a", "b"]), "member": np.array([1, 0]),
        "text": np.array(["to be", "or not"]), "lengths": np.array([2, 1]),
        "logprobs": np.array([-1.0, -2.5, -4]), "mean_logprobs": np.array([-2.0, -2, -2]),
        "std_logprobs": np.array([0.5, 1, 0.25]), "greedy": np.array([True, False, False]),
        "drawn_logprobs": np.array([-0.5, -np.inf, -np.inf]),
        "reference_logprobs": np.array([-3.0, -3, -1]), "reference_lengths": np.array([1, 2]),
    } | changed  # fmt: skip
    path = folder / "signals.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_both_formats_hold_the_same_signals(tmp_path: Path) -> None:
    read = [read_token_signals(json_lines(tmp_path, *LINES)), read_token_signals(archive(tmp_path))]
    for records, signals in read:
        assert records.ids == ("a", "b")
        assert records.require_member().tolist() == [True, False]
        assert records.texts == ("to be", "or not")
        assert signals[0].log_probabilities.tolist() == [-1, -2.5]
        assert signals[1].means.tolist() == [-2]  # type: ignore[union-attr]
        assert signals[0].deviations.tolist() == [0.5, 1]  # type: ignore[union-attr]
        assert signals[0].greedy.tolist() == [True, False]  # type: ignore[union-attr]
        assert signals[0].drawn.tolist() == [-0.5, -np.inf]  # type: ignore[union-attr]
        assert signals[1].reference.tolist() == [-3, -1]  # type: ignore[union-attr]
        assert [one.compressed_bytes for one in signals] == [
            zlib_bytes("to be"),
            zlib_bytes("or not"),
        ]


def test_log_probabilities_alone_are_enough(tmp_path: Path) -> None:
    records, signals = read_token_signals(
        json_lines(tmp_path, {"logprobs": [-1]}, {"logprobs": [-2]})
    )
    assert records.ids == ("0", "1")
    assert records.texts is None
    assert records.member is None
    assert signals[0].compressed_bytes is None
    with pytest.raises(InvalidData, match="member"):
        records.require_member()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ([1], "JSON object"),
        ({"member": 1}, "logprobs"),
        ({"logprobs": ["a"]}, "documented keys"),
        ({"logprobs": []}, "at least one token"),
        ({"logprobs": [0.5]}, "at most 0"),
        ({"logprobs": [-1], "member": 2}, "member"),
        ({"logprobs": [-1], "mean_logprobs": [-1, -1]}, "one value for each"),
        ({"logprobs": [-1], "id": "b", "member": 0}, "occurs twice"),
        ({"logprobs": [-1], "id": "c"}, "1 or 0 for every text"),
    ],
)
def test_lines_that_cannot_be_used_are_refused(tmp_path: Path, line: object, text: str) -> None:
    path = json_lines(tmp_path, LINES[1], line)
    with pytest.raises(DpauditError, match=text):
        read_token_signals(path)


def test_json_beyond_the_standard_and_deep_nesting_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "signals.jsonl"
    for content in (
        '{"logprobs": [NaN]}',
        '{"x": ' + "[" * 100_000,
        "\xff",
        '{"logprobs": [1e999]}',
    ):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(InvalidData):
            read_token_signals(path)
    path.write_text("\n")
    with pytest.raises(InvalidData, match="one text or more"):
        read_token_signals(path)


def test_a_line_above_the_limit_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LINE_LIMIT", 40)
    path = json_lines(tmp_path, {"logprobs": [-1.0]}, {"logprobs": [-1.0] * 20})
    with pytest.raises(UnreadableFile, match="line 2 is longer than 40 bytes"):
        read_token_signals(path)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("lengths", np.array([2, 2]), "sum other"),
        ("lengths", np.array([3, 0]), "sum other"),
        ("lengths", np.array([2.0, 1.0]), "integers"),
        ("lengths", None, "lengths"),
        ("mean_logprobs", np.array([-1.0]), "3 numbers"),
        ("greedy", np.array(["a", "b", "c"]), "3 numbers"),
        ("member", np.array([1, 2]), "member"),
        ("member", np.array([1, 0, 0]), "one value for each"),
        ("text", np.array([1, 2]), "one value for each"),
        ("logprobs", np.array([-1.0, np.nan, -1]), "at most 0"),
        ("logprobs", np.array([None, None, None]), "objects"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(
    tmp_path: Path, name: str, value: np.ndarray, text: str
) -> None:
    with pytest.raises(DpauditError, match=text):
        read_token_signals(archive(tmp_path, **{name: value}))


def test_tables_and_json_lines_of_texts_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,text,member\nx,"to be, or",1\ny,not,0\n')
    (tmp_path / "t.jsonl").write_text(
        '{"id": "x", "text": "to be, or", "member": 1}\n{"id": "y", "text": "not", "member": 0}\n'
    )
    for name in ("t.csv", "t.jsonl"):
        found = read_texts(tmp_path / name)
        assert (found.ids, found.texts) == (("x", "y"), ("to be, or", "not"))
        assert found.require_member().tolist() == [True, False]


@pytest.mark.parametrize(
    "content", ["text,member\n,1\n", "body\na\n", "text,member\na,maybe\n", "text,member\na,0.5\n"]
)
def test_tables_without_texts_or_bits_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InvalidData):
        read_texts(tmp_path / "t.csv")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"\.jsonl"):
        read_token_signals(tmp_path / "signals.pkl")
    with pytest.raises(UnreadableFile):
        read_token_signals(tmp_path / "missing.jsonl")
