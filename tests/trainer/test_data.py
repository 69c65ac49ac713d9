"""Records from files: the same whatever their neighbors are, or one line of refusal."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dpaudit.trainer.data import DatasetSplit, load_dataset
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import DataSettings

RECORDS = 40
BYTES = np.random.default_rng(7).integers(0, 256, (RECORDS, 3, 3), dtype=np.uint8)
REALS = np.random.default_rng(8).normal(size=(RECORDS, 4))
LABELS = (np.arange(RECORDS) % 2).astype(np.uint8)

a_folder = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def load_from(path: Path | str, **asked: Any) -> DatasetSplit:
    return load_dataset(DataSettings(source=str(path), **asked))


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def save_table(path: Path, **columns: Any) -> Path:
    frame = pd.DataFrame(columns)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def idx(array: NDArray[np.uint8]) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">HBB", 0, 8, array.ndim) + sizes + array.tobytes()


def save_idx(folder: Path, *, compressed: bool = False, with_test_set: bool = True) -> Path:
    folder.mkdir()
    arrays = {"train-images-idx3-ubyte": BYTES, "train-labels-idx1-ubyte": LABELS}
    if with_test_set:
        arrays |= {"t10k-images-idx3-ubyte": BYTES[:6], "t10k-labels-idx1-ubyte": LABELS[:6]}
    for name, array in arrays.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


def save_images(folder: Path, images: NDArray[np.uint8], suffix: str = ".png") -> Path:
    for number, image in enumerate(images):
        group = folder / ("cat", "dog")[number % 2]
        group.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(group / f"{number:03}{suffix}")
    return folder


def all_features(split: DatasetSplit) -> NDArray[np.float32]:
    return np.concatenate([split.train.features, split.heldout.features])


def as_sorted_rows(features: NDArray[Any]) -> NDArray[np.float32]:
    rows = features.reshape(len(features), -1).astype(np.float32)
    return rows[np.lexsort(rows.T)]


def refusal(path: Path | str, **asked: Any) -> str:
    """Return the message with which ``path`` is refused: one line that names data or label."""
    with pytest.raises(InvalidArgument) as refused:
        load_from(path, **asked)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"{refused.value.name} must be ")
    return message


# What loads.


def test_npz_with_a_test_set_keeps_it_apart(tmp_path: Path) -> None:
    path = save_npz(
        tmp_path / "a.npz", x_train=BYTES, y_train=LABELS, x_test=BYTES[:6], y_test=LABELS[:6]
    )
    split = load_from(path)
    assert np.array_equal(split.train.features, BYTES.astype(np.float32) / 255)
    assert np.array_equal(split.train.labels, LABELS)
    assert np.array_equal(split.heldout.features, BYTES[:6].astype(np.float32) / 255)
    assert (split.shape, split.classes) == ((3, 3), ("0", "1"))
    assert split.train.features.dtype == np.float32
    assert split.train.labels.dtype == np.int64


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("x", "y"), ("features", "labels")])
def test_npz_without_a_test_set_holds_out_some_records(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    path = save_npz(tmp_path / "a.npz", **dict(zip(names, (BYTES, LABELS), strict=True)))
    split = load_from(path)
    assert len(split.train) + len(split.heldout) == RECORDS
    assert np.array_equal(as_sorted_rows(all_features(split) * 255), as_sorted_rows(BYTES))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet"])
def test_a_table_gives_its_numbers_as_they_are(tmp_path: Path, name: str) -> None:
    path = save_table(tmp_path / name, u=REALS[:, 0], v=REALS[:, 1], label=LABELS)
    split = load_from(path)
    assert split.shape == (2,)
    assert np.array_equal(as_sorted_rows(all_features(split)), as_sorted_rows(REALS[:, :2]))


def test_the_label_column_is_the_one_asked_for_then_label_then_the_last(tmp_path: Path) -> None:
    letters = np.array(["a", "b", "c", "d"])[np.arange(RECORDS) % 4]
    named = save_table(tmp_path / "a.csv", label=LABELS, v=REALS[:, 0], other=letters)
    assert load_from(named).classes == ("0", "1")
    assert load_from(named, label="other").classes == ("a", "b", "c", "d")
    unnamed = save_table(tmp_path / "b.csv", v=REALS[:, 0], other=letters)
    assert load_from(unnamed).classes == ("a", "b", "c", "d")


def test_text_and_truth_values_in_a_table_become_numbers(tmp_path: Path) -> None:
    text = save_table(tmp_path / "a.csv", v=REALS[:, 0], t=["x", "y"] * 20, label=LABELS)
    assert load_from(text).shape == (3,)
    truth = save_table(tmp_path / "b.csv", v=REALS[:, 0], t=LABELS == 1, label=LABELS)
    assert load_from(truth).shape == (2,)


def test_whole_numbers_that_may_be_missing_load_where_none_is(tmp_path: Path) -> None:
    counts = pd.array(range(RECORDS), dtype="Int64")
    path = save_table(tmp_path / "a.parquet", u=counts, v=REALS[:, 0], label=LABELS)
    assert load_from(path).shape == (2,)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("by_file", [False, True])
def test_idx_loads_from_its_folder_and_from_its_images_file(
    tmp_path: Path, compressed: bool, by_file: bool
) -> None:
    folder = save_idx(tmp_path / "idx", compressed=compressed)
    name = "train-images-idx3-ubyte" + (".gz" if compressed else "")
    split = load_from(folder / name if by_file else folder)
    assert np.array_equal(split.train.features, BYTES.astype(np.float32) / 255)
    assert np.array_equal(split.heldout.labels, LABELS[:6])


def test_idx_without_a_test_set_holds_out_some_records(tmp_path: Path) -> None:
    split = load_from(save_idx(tmp_path / "idx", with_test_set=False))
    assert 0 < len(split.heldout) < RECORDS == len(split.train) + len(split.heldout)


def test_grey_images_have_two_dimensions_and_colour_ones_channels_first(tmp_path: Path) -> None:
    grey = load_from(save_images(tmp_path / "grey", BYTES))
    assert (grey.shape, grey.classes) == ((3, 3), ("cat", "dog"))
    assert np.array_equal(as_sorted_rows(all_features(grey) * 255), as_sorted_rows(BYTES))
    colours = np.random.default_rng(9).integers(0, 256, (RECORDS, 5, 4, 3), dtype=np.uint8)
    colour = load_from(save_images(tmp_path / "colour", colours))
    assert colour.shape == (3, 5, 4)
    rows = as_sorted_rows(colours.transpose(0, 3, 1, 2))
    assert np.array_equal(as_sorted_rows(all_features(colour) * 255), rows)


def test_the_bundled_digits_lie_between_0_and_1() -> None:
    split = load_from("digits")
    assert (split.shape, len(split.classes)) == ((8, 8), 10)
    assert len(split.train) + len(split.heldout) == 1797
    assert (all_features(split).min(), all_features(split).max()) == (0, 1)


def test_mnist_loads_whole(data_folder: Path) -> None:
    path = data_folder / "mnist.npz"
    if not path.exists():
        pytest.skip(f"no {path}")
    split = load_from(path)
    assert (len(split.train), len(split.heldout)) == (60000, 10000)
    assert (split.shape, len(split.classes)) == ((28, 28), 10)
    assert (split.train.features.min(), split.train.features.max()) == (0, 1)


# What one record does to the others: nothing.


@given(extra=st.integers(0, 255), count=st.integers(1, 5), seed=st.integers(0, 10))
@a_folder
def test_a_record_appended_changes_no_other_records_features_nor_coin(
    tmp_path: Path, extra: int, count: int, seed: int
) -> None:
    more = np.concatenate([BYTES // 2, np.full((count, 3, 3), extra, np.uint8)])
    labels = np.concatenate([LABELS, np.zeros(count, np.uint8)])
    small = load_from(save_npz(tmp_path / "a.npz", x=BYTES // 2, y=LABELS), split_seed=seed)
    large = load_from(save_npz(tmp_path / "b.npz", x=more, y=labels), split_seed=seed)
    for before, after in ((small.train, large.train), (small.heldout, large.heldout)):
        assert np.array_equal(after.features[: len(before)], before.features)
        assert np.array_equal(after.labels[: len(before)], before.labels)


@given(st.floats(-1e6, 1e6, width=32))
@a_folder
def test_reals_are_never_scaled_by_what_the_data_hold(tmp_path: Path, extra: float) -> None:
    features = np.concatenate([REALS, np.full((1, 4), extra)])
    split = load_from(save_npz(tmp_path / "a.npz", x=features, y=np.append(LABELS, 1)))
    assert np.array_equal(as_sorted_rows(all_features(split)), as_sorted_rows(features))


def test_bytes_are_scaled_by_255_even_where_the_data_never_reach_it(tmp_path: Path) -> None:
    dark = load_from(save_npz(tmp_path / "a.npz", x=BYTES % 7, y=LABELS))
    assert all_features(dark).max() == np.float32(6 / 255)


def test_the_test_set_is_scaled_by_its_own_kind_of_number(tmp_path: Path) -> None:
    scaled = BYTES[:6].astype(np.float32) / 255
    path = save_npz(
        tmp_path / "a.npz", x_train=BYTES, y_train=LABELS, x_test=scaled, y_test=LABELS[:6]
    )
    try:
        heldout = load_from(path).heldout
    except InvalidArgument:
        return  # two kinds of number may be refused, too
    assert np.allclose(heldout.features, scaled)


def test_a_public_range_is_scaled_to_0_and_1_and_clipped(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", x=REALS, y=LABELS)
    split = load_from(path, feature_range=(-0.5, 0.5))
    expected = np.clip(REALS + 0.5, 0, 1)
    assert np.allclose(as_sorted_rows(all_features(split)), as_sorted_rows(expected), atol=1e-6)


@given(st.integers(0, 50), st.floats(0.2, 0.8))
@a_folder
def test_the_same_seed_holds_out_the_same_records(
    tmp_path: Path, seed: int, fraction: float
) -> None:
    path = save_npz(tmp_path / "a.npz", x=REALS, y=LABELS)
    first = load_from(path, split_seed=seed, test_fraction=fraction)
    again = load_from(path, split_seed=seed, test_fraction=fraction)
    assert np.array_equal(first.heldout.features, again.heldout.features)


# What is refused, in one line that names the argument and what is allowed.


@pytest.mark.parametrize("source", ["nowhere.npz", "a\0b.npz", "x" * 300 + ".npz", "x" * 5000])
def test_a_source_that_does_not_exist_is_refused(source: str) -> None:
    assert "no such file or folder" in refusal(source)


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_text("1 2 3")
    assert "a .npz, .csv or .parquet file" in refusal(path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "one sub-folder of images per class" in refusal(tmp_path)


def one_npz(folder: Path) -> Path:
    return save_npz(folder / "a.npz", x=BYTES, y=LABELS)


def one_csv(folder: Path) -> Path:
    return save_table(folder / "a.csv", u=REALS[:, 0], label=LABELS)


def one_csv_gz(folder: Path) -> Path:
    return save_table(folder / "a.csv.gz", u=REALS[:, 0], label=LABELS)


def one_parquet(folder: Path) -> Path:
    return save_table(folder / "a.parquet", u=REALS[:, 0], label=LABELS)


def one_idx(folder: Path) -> Path:
    return save_idx(folder / "idx") / "train-images-idx3-ubyte"


def one_idx_gz(folder: Path) -> Path:
    return save_idx(folder / "idx", compressed=True) / "train-images-idx3-ubyte.gz"


def one_image(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        noise = np.random.default_rng(10).integers(0, 256, (8, 16, 16), dtype=np.uint8)
        save_images(folder / "images", noise, suffix)
        return folder / "images" / "cat" / f"000{suffix}"

    return make


ONE_FILE = {
    "npz": one_npz,
    "csv": one_csv,
    "csv.gz": one_csv_gz,
    "parquet": one_parquet,
    "idx": one_idx,
    "idx.gz": one_idx_gz,
    "png": one_image(".png"),
    "jpeg": one_image(".jpeg"),
    "bmp": one_image(".bmp"),
    "gif": one_image(".gif"),
}


def source_of(path: Path) -> Path:
    """Return what the user names: the file, or for an image its folder of folders."""
    return path.parent.parent if "images" in path.parts[-3:] else path


@pytest.mark.parametrize("kind", sorted(set(ONE_FILE) - {"csv"}))
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, kept: float) -> None:
    path = ONE_FILE[kind](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refusal(source_of(path))


@pytest.mark.parametrize("kind", sorted(ONE_FILE))
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_loads_or_is_refused_and_nothing_else(tmp_path: Path, kind: str) -> None:
    path = ONE_FILE[kind](tmp_path)
    content = path.read_bytes()
    random = np.random.default_rng(11)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            load_from(source_of(path))
        except InvalidArgument as error:
            assert "\n" not in str(error)  # noqa: PT017  both outcomes are allowed


def test_a_gzip_stream_of_nonsense_is_refused(tmp_path: Path) -> None:
    path = one_idx_gz(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.index(b"\0", 10) + 1 if content[3] & 8 else 10  # after the name, if there is one
    content[at] = 0b111  # a last block of the kind that no standard defines
    path.write_bytes(bytes(content))
    refusal(path)


def test_an_image_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    path = one_image(".bmp")(tmp_path)
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 180_000, 180_000)  # its width and height
    path.write_bytes(bytes(content))
    refusal(source_of(path))


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

    objects = np.array([Bomb()] * RECORDS, dtype=object)
    assert "pickle" in refusal(save_npz(tmp_path / "a.npz", x=objects, y=LABELS))
    assert "pickle" in refusal(save_npz(tmp_path / "b.npz", x=REALS, y=objects))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.parquet"])
def test_a_feature_that_is_not_finite_is_refused_by_its_record(
    tmp_path: Path, name: str, value: float
) -> None:
    features = REALS.copy()
    features[17, 2] = value
    path = tmp_path / name
    if name == "a.npz":
        save_npz(path, x=features, y=LABELS)
    else:
        save_table(path, u=features[:, 1], v=features[:, 2], label=LABELS)
    assert "record 17 holds NaN or infinity" in refusal(path)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_number_too_large_for_float32_is_refused_by_its_record(tmp_path: Path) -> None:
    features = REALS.copy()
    features[17, 2] = 1e300
    assert "record 17" in refusal(save_npz(tmp_path / "a.npz", x=features, y=LABELS))


@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.parquet"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    labels = LABELS.astype(np.float64)
    labels[3] = value
    if name == "a.npz":
        message = refusal(save_npz(tmp_path / name, x=REALS, y=labels))
    else:
        message = refusal(save_table(tmp_path / name, u=REALS[:, 0], label=labels))
    assert "label" in message


WRONG_ARRAYS = {
    "features and labels of different lengths": {"x": REALS, "y": LABELS[:-1]},
    "labels of two dimensions": {"x": REALS, "y": LABELS[:, None]},
    "labels of no dimension": {"x": REALS, "y": np.array(1)},
    "features of one dimension": {"x": REALS[:, 0], "y": LABELS},
    "features of no dimension": {"x": np.array(1.0), "y": LABELS},
    "features without a column": {"x": REALS[:, :0], "y": LABELS},
    "one class": {"x": REALS, "y": np.zeros(RECORDS)},
    "no records": {"x": REALS[:0], "y": LABELS[:0]},
    "text for features": {"x": REALS.astype(str), "y": LABELS},
    "complex features": {"x": REALS.astype(complex), "y": LABELS},
    "no labels": {"x": REALS},
    "other names": {"images": REALS, "targets": LABELS},
    "an empty test set": {
        "x_train": REALS,
        "y_train": LABELS,
        "x_test": REALS[:0],
        "y_test": LABELS[:0],
    },
    "a test set of another shape": {
        "x_train": REALS,
        "y_train": LABELS,
        "x_test": REALS[:, :3],
        "y_test": LABELS,
    },
    "a test set whose labels are dates": {
        "x_train": REALS,
        "y_train": LABELS,
        "x_test": REALS[:1],
        "y_test": np.array(["2020"], dtype="M8[Y]"),
    },
}


@pytest.mark.parametrize("what", WRONG_ARRAYS)
def test_arrays_that_make_no_records_are_refused(tmp_path: Path, what: str) -> None:
    refusal(save_npz(tmp_path / "a.npz", **WRONG_ARRAYS[what]))


WRONG_COLUMNS: dict[str, dict[str, Any]] = {
    "lists for features": {"u": [[1.0, 2.0]] * RECORDS, "label": LABELS},
    "records for features": {"u": [{"bytes": 1}] * RECORDS, "label": LABELS},
    "records for labels": {"u": REALS[:, 0], "label": [{"a": int(y)} for y in LABELS]},
    "dates for features": {"u": pd.date_range("2020-01-01", periods=RECORDS), "label": LABELS},
    "labels alone": {"label": LABELS},
    "one class": {"u": REALS[:, 0], "label": LABELS * 0},
}


@pytest.mark.parametrize("what", WRONG_COLUMNS)
def test_columns_that_make_no_records_are_refused(tmp_path: Path, what: str) -> None:
    refusal(save_table(tmp_path / "a.parquet", **WRONG_COLUMNS[what]))


@pytest.mark.parametrize(
    "text", ["", "\n", "u,label\n", '"u,label\n1,0\n', "u,label\n1,0,0\n1,1\n"]
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    refusal(tmp_path / "a.csv")


def test_rows_longer_than_the_header_never_shift_the_columns(tmp_path: Path) -> None:
    rows = [f"{number},{number % 2},{number % 5}" for number in range(RECORDS)]
    (tmp_path / "a.csv").write_text("\n".join(["u,label", *rows]))
    try:
        split = load_from(tmp_path / "a.csv")
    except InvalidArgument:
        return
    assert split.classes == ("0", "1")


def test_labels_of_two_kinds_in_a_long_table_load_or_are_refused(tmp_path: Path) -> None:
    rows = [f"{number}.5,{number % 2}" for number in range(400_000)]
    (tmp_path / "a.csv").write_text("\n".join(["u,label", *rows, "1,x"]))
    try:
        assert load_from(tmp_path / "a.csv").classes == ("0", "1", "x")
    except InvalidArgument as error:
        assert "\n" not in str(error)  # noqa: PT017  both outcomes are allowed


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_an_unknown_label_column_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    path = save_table(tmp_path / name, u=REALS[:, 0], label=LABELS)
    message = refusal(path, label="colour")
    assert message.startswith("label must be")
    assert "'u', 'label'" in message


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", BYTES[:8])
    Image.fromarray(np.zeros((4, 3), np.uint8)).save(folder / "dog" / "z.png")
    message = refusal(folder)
    assert "(3, 3)" in message
    assert "z.png" in message


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(BYTES[0]).save(tmp_path / "cat" / "a.png")
    assert "at least two classes" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack(">HBB", 0, 8, 3),  # no sizes
        struct.pack(">HBB", 0, 13, 1) + struct.pack(">If", 1, 0.5),  # floats, not bytes
        struct.pack(">HBB", 1, 8, 1) + struct.pack(">IB", 1, 0),  # another magic number
        struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),  # sizes without data
        idx(BYTES) + b"\0",  # a byte too many
        idx(BYTES[:-1]),  # a record too few
        idx(BYTES[:, 0, 0]),  # one number a record
    ],
    ids=range(8),
)
def test_an_idx_file_that_is_not_what_it_says_is_refused(tmp_path: Path, content: bytes) -> None:
    path = one_idx(tmp_path)
    path.write_bytes(content)
    refusal(path)


def test_idx_images_without_labels_are_refused(tmp_path: Path) -> None:
    path = one_idx(tmp_path)
    (path.parent / "train-labels-idx1-ubyte").unlink()
    assert "train-labels-idx1-ubyte" in refusal(path)
