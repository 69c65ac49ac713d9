"""Small files: whole or not at all, and nothing read that is not what it says."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpaudit.runs.file_io import (
    read_arrays,
    read_json,
    read_toml,
    require_new_file,
    sha256,
    write_arrays,
    write_bytes,
    write_json,
    write_toml,
)
from dpaudit.vocabulary.audit import (
    AdaptiveGuesses,
    AuditReport,
    AuditResult,
    BatchMeans,
    BatchRates,
    BoundKind,
    ClaimedCurve,
    ErrorBand,
    GaussianBand,
    GaussianPivot,
    GuessCount,
    MembershipResult,
    OneRun,
    SampleMoments,
    SequentialRanks,
    TotalVariation,
    TprAtFpr,
)
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.errors import (
    LARGEST_DEVIATION,
    MOST_COUNT,
    DpauditError,
    InputOutputError,
    IntegrityError,
    InvalidArgument,
)
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from dpaudit.vocabulary.settings import (
    DEVICES,
    LEARNING_RATE_SCHEDULES,
    NOISE_DISTRIBUTIONS,
    OPTIMIZERS,
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict

in_one_folder = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Every value that a struct allows.
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(0, exclude_min=True, allow_infinity=False)
at_least_0 = st.floats(0, allow_infinity=False)
unit = st.floats(0, 1, exclude_min=True, exclude_max=True)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
counts = st.integers(0, 2**53)
bounds = st.tuples(finite, finite).map(lambda pair: Bound(*sorted(pair)))
ranges = st.tuples(finite, finite).map(sorted).filter(lambda pair: pair[0] < pair[1]).map(tuple)

noise_within_float32 = st.tuples(positive, positive).filter(
    lambda pair: pair[0] * pair[1] <= LARGEST_DEVIATION
)


def privacy_settings(noise_and_clip: tuple[float, float], **others: Any) -> PrivacySettings:
    noise_multiplier, clip_norm = noise_and_clip
    return PrivacySettings(noise_multiplier=noise_multiplier, clip_norm=clip_norm, **others)


configs = st.builds(
    RunConfig,
    st.builds(DataSettings, text, st.none() | text, st.none() | ranges, unit, counts),
    st.builds(
        privacy_settings,
        noise_within_float32,
        sampling_rate=unit | st.just(1.0),
        steps=st.integers(1, 2**53),
        delta=st.floats(1e-300, 1, exclude_max=True),
        expected_batch_size=st.none() | positive,
        count_noise_multiplier=positive,
        seed=st.none() | st.integers(0, MOST_COUNT),
        unaccounted=st.lists(text, max_size=3).map(tuple),
        noise=st.sampled_from(NOISE_DISTRIBUTIONS),
    ),
    st.builds(
        ModelSettings,
        text,
        st.sampled_from(OPTIMIZERS),
        st.none() | positive,
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(LEARNING_RATE_SCHEDULES),
        st.none() | unit,
    ),
    st.builds(CanarySettings, counts, counts),
    st.builds(
        SpeedSettings, st.integers(1, 2**53), st.integers(1, 2**53), st.sampled_from(DEVICES)
    ),
    st.none() | text,
)
claims = st.builds(
    Claim,
    epsilon=bounds,
    delta=unit,
    accountant=text,
    adjacency=st.sampled_from(Adjacency),
    sampling=st.sampled_from(Sampling),
    randomness=st.sampled_from(Randomness),
    releases=counts,
    ledger_head=text,
    dpaudit_version=text,
    unaccounted=st.lists(text, max_size=2).map(tuple),
    assumed_public=st.lists(text, max_size=2).map(tuple),
)
answers = st.builds(
    EpsilonAnswer,
    text,
    st.sampled_from(Adjacency),
    unit,
    bounds,
    st.dictionaries(text, bounds, max_size=3),
    st.sampled_from(Sampling),
)
band_counts = st.tuples(*[st.integers(0, 100_000)] * 2).map(sorted)
samples = st.builds(SampleMoments, counts, finite, at_least_0)
parts = st.tuples(counts, counts).map(sorted)
estimators = (
    st.builds(
        lambda pairs: OneRun(tuple(GuessCount(most, least) for least, most in pairs)),
        st.lists(parts, max_size=2),
    )
    | st.builds(ClaimedCurve, st.none() | positive)
    | st.builds(TotalVariation, st.none() | positive)
    | st.builds(lambda hits, alarms: BatchRates(*hits, *alarms), parts, parts)
    | st.builds(BatchMeans, samples, samples)
    | st.builds(GaussianPivot, samples, samples)
    | st.builds(lambda errors: GaussianBand(errors[1], errors[1], *[(errors[0],)] * 2), band_counts)
    | st.builds(lambda errors: ErrorBand(errors[1], errors[1], *[(errors[0],)] * 2), band_counts)
    | st.permutations(range(6)).map(
        lambda ranks: SequentialRanks(tuple(ranks[:3]), tuple(ranks[3:]))
    )
    | st.just(AdaptiveGuesses())
)


@st.composite
def results(draw: st.DrawFn) -> AuditResult:
    correct, guesses, trials = sorted(draw(st.tuples(counts, counts, counts)))
    return AuditResult(
        name=draw(text),
        method=draw(text),
        kind=draw(st.sampled_from(BoundKind)),
        epsilon_lower=draw(at_least_0),
        delta=draw(unit),
        confidence=draw(st.floats(0.75, 1, exclude_max=True)),
        assumes=draw(text),
        trials=trials,
        guesses=guesses,
        correct=correct,
        thresholds=draw(text),
        registered=draw(st.none() | text),
        detectable_epsilon=draw(st.none() | at_least_0),
        estimator=draw(st.none() | estimators),
    )


rates = st.tuples(unit, unit, unit).map(sorted)
memberships = st.builds(
    MembershipResult,
    text,
    st.integers(1, 2**53),
    st.integers(1, 2**53),
    unit,
    unit,
    st.lists(
        st.builds(
            lambda fpr, r, confidence: TprAtFpr(fpr, r[1], Bound(r[0], r[2]), confidence),
            unit,
            rates,
            unit,
        ),
        max_size=2,
    ).map(tuple),
    st.lists(st.tuples(unit, unit), max_size=4).map(tuple),
)
reports = st.builds(
    AuditReport,
    text,
    st.floats(0, 0.5, exclude_min=True),
    st.lists(results(), max_size=2).map(tuple),
    st.lists(memberships, max_size=2).map(tuple),
    st.none() | unit,
    st.integers(0, 5),
)
verdicts = st.builds(
    Verdict,
    st.lists(st.builds(RuleOutcome, text, st.sampled_from(Outcome), text), max_size=4).map(tuple),
    text,
)

CLAIM = Claim(
    epsilon=Bound(2.9, 3.0),
    delta=1e-5,
    accountant="pld",
    adjacency=Adjacency.ADD_OR_REMOVE_ONE,
    sampling=Sampling.POISSON,
    randomness=Randomness.SECURE,
    releases=101,
    ledger_head="ab" * 32,
    dpaudit_version="0.1",
)
CONFIG = RunConfig(
    DataSettings(),
    PrivacySettings(sampling_rate=0.1, noise_multiplier=1.0, clip_norm=0.5, steps=3, delta=1e-5),
    ModelSettings(),
    CanarySettings(),
    SpeedSettings(),
)


# What is written is read.


@given(claims | answers | reports | verdicts)
@in_one_folder
def test_json_reads_back_as_it_was_written(tmp_path: Path, value: msgspec.Struct) -> None:
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", type(value)) == value


@given(configs)
@in_one_folder
def test_toml_reads_back_as_it_was_written(tmp_path: Path, value: RunConfig) -> None:
    write_toml(tmp_path / "a.toml", value)
    assert read_toml(tmp_path / "a.toml", RunConfig) == value


@given(st.lists(st.floats(width=32), max_size=9), st.lists(st.booleans(), max_size=9))
@in_one_folder
def test_arrays_read_back_as_they_were_written(
    tmp_path: Path, numbers: list[float], bits: list[bool]
) -> None:
    rows, flags = np.array(numbers, np.float32), np.array(bits, np.bool_)
    write_arrays(tmp_path / "a.npz", rows=rows, flags=flags)
    read = read_arrays(tmp_path / "a.npz")
    assert set(read) == {"rows", "flags"}
    assert np.array_equal(read["rows"], rows, equal_nan=True)
    assert np.array_equal(read["flags"], flags)


def test_sha256_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-4's first example
    assert sha256(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# No number that is none.


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null", "1e999", '"3"', "true"])
def test_json_that_holds_no_number_where_one_belongs_is_refused(tmp_path: Path, value: str) -> None:
    write_json(tmp_path / "a.json", CLAIM)
    content = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(content.replace("3.0", value))
    with pytest.raises(IntegrityError):
        read_json(tmp_path / "a.json", Claim)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", '"3"', "true", "0.0", "-1.0"])
def test_toml_that_holds_no_number_where_one_belongs_is_refused(tmp_path: Path, value: str) -> None:
    write_toml(tmp_path / "a.toml", CONFIG)
    content = (tmp_path / "a.toml").read_text()
    (tmp_path / "a.toml").write_text(content.replace("clip_norm = 0.5", f"clip_norm = {value}"))
    with pytest.raises(IntegrityError):
        read_toml(tmp_path / "a.toml", RunConfig)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_that_is_not_finite_is_written_as_null(tmp_path: Path, value: float) -> None:
    answer = EpsilonAnswer(
        "pld", Adjacency.ADD_OR_REMOVE_ONE, value, Bound(0.0, 1.0), {}, Sampling.POISSON
    )
    with pytest.raises((DpauditError, ValueError)):
        write_json(tmp_path / "a.json", answer)
    assert not (tmp_path / "a.json").exists()


def test_an_interval_that_is_none_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CLAIM)
    content = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(content.replace("2.9", "3.5"))
    with pytest.raises(IntegrityError):
        read_json(tmp_path / "a.json", Claim)


# Versions.


@pytest.mark.parametrize("version", ["1", "1.999", "2", "2.0", "2.999"])
def test_an_unknown_minor_version_is_read(tmp_path: Path, version: str) -> None:
    claim = msgspec.structs.replace(CLAIM, schema_version=version)
    write_json(tmp_path / "a.json", claim)
    assert read_json(tmp_path / "a.json", Claim) == claim
    config = msgspec.structs.replace(CONFIG, schema_version=version)
    write_toml(tmp_path / "a.toml", config)
    assert read_toml(tmp_path / "a.toml", RunConfig) == config


def test_version_1_0_is_read_as_the_present_version(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", msgspec.structs.replace(CLAIM, schema_version="1.0"))
    assert read_json(tmp_path / "a.json", Claim) == CLAIM


@pytest.mark.parametrize("version", ["3", "3.0", "10.0", "0.9", "", "one", "11.0"])
def test_an_unknown_major_version_is_refused_by_its_name(tmp_path: Path, version: str) -> None:
    write_json(tmp_path / "a.json", msgspec.structs.replace(CLAIM, schema_version=version))
    with pytest.raises(IntegrityError, match=f"has schema_version {version};"):
        read_json(tmp_path / "a.json", Claim)
    write_toml(tmp_path / "a.toml", msgspec.structs.replace(CONFIG, schema_version=version))
    with pytest.raises(IntegrityError, match=f"has schema_version {version};"):
        read_toml(tmp_path / "a.toml", RunConfig)


@pytest.mark.parametrize("version", [1, 1.0, None, [], {}])
def test_a_version_that_is_no_text_is_refused(tmp_path: Path, version: Any) -> None:
    fields = msgspec.to_builtins(CLAIM) | {"schema_version": version}
    (tmp_path / "a.json").write_text(json.dumps(fields))
    with pytest.raises(IntegrityError):
        read_json(tmp_path / "a.json", Claim)


# What is broken is refused, and nothing else is raised.

DEEP = 100_000
BROKEN = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "a number": b"1",
    "a list": b"[1]",
    "half": b'{"schema_version": "2.0"',
    "no fields": b'{"schema_version": "2.0"}',
    "deep": b'{"schema_version": "2.0", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep and torn": b"[" * DEEP,
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_json_is_an_integrity_error(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.json").write_bytes(BROKEN[what])
    with pytest.raises(IntegrityError):
        read_json(tmp_path / "a.json", Claim)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"x", b'schema_version = "2.0"', b'schema_version = "2.0"\nx = ' + b"[" * DEEP],
    ids=range(5),
)
def test_broken_toml_is_an_integrity_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(IntegrityError):
        read_toml(tmp_path / "a.toml", RunConfig)


def test_a_setting_that_we_do_not_know_is_refused(tmp_path: Path) -> None:
    write_toml(tmp_path / "a.toml", CONFIG)
    content = (tmp_path / "a.toml").read_text()
    (tmp_path / "a.toml").write_text(content.replace("clip_norm", "clip_nrom"))
    with pytest.raises(IntegrityError):
        read_toml(tmp_path / "a.toml", RunConfig)


@pytest.mark.parametrize("name", ["nothing", "a folder"])
def test_a_missing_file_is_an_integrity_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a folder").mkdir()
    path = tmp_path / name
    for read in (
        lambda: read_json(path, Claim),
        lambda: read_toml(path, RunConfig),
        lambda: read_arrays(path),
        lambda: sha256(path),
    ):
        with pytest.raises(IntegrityError):
            read()


def test_damaged_arrays_read_unchanged_or_are_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    rows = np.random.default_rng(1).normal(size=(30, 4))
    write_arrays(path, rows=rows)
    content = path.read_bytes()
    random = np.random.default_rng(2)
    for _ in range(600):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            read = read_arrays(path)
        except IntegrityError:
            continue
        for array in read.values():  # the array's name is under no checksum
            assert np.array_equal(array, rows)


@pytest.mark.parametrize("kept", [0, 1, 30, 200, -1])
def test_truncated_arrays_are_an_integrity_error(tmp_path: Path, kept: int) -> None:
    write_arrays(tmp_path / "a.npz", rows=np.random.default_rng(1).normal(size=(30, 4)))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:kept])
    with pytest.raises(IntegrityError):
        read_arrays(tmp_path / "a.npz")


def test_an_array_that_is_no_archive_is_an_integrity_error(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(IntegrityError):
        read_arrays(tmp_path / "a.npz")


def test_pickled_arrays_are_neither_written_nor_read(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(tmp_path / "a.npz", objects=objects)
    assert not (tmp_path / "a.npz").exists()
    np.savez(tmp_path / "b.npz", objects=objects)
    with pytest.raises(IntegrityError):
        read_arrays(tmp_path / "b.npz")


# The old file stands until the new one is whole.


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    old = {name: tmp_path / name for name in ("a.bin", "a.json", "a.toml", "a.npz")}
    for path in old.values():
        path.write_bytes(b"old")
    monkeypatch.setattr(os if place == "fsync" else Path, place, fail)
    for write in (
        lambda: write_bytes(old["a.bin"], b"new"),
        lambda: write_json(old["a.json"], CLAIM),
        lambda: write_toml(old["a.toml"], CONFIG),
        lambda: write_arrays(old["a.npz"], rows=np.zeros(3)),
    ):
        with pytest.raises(InputOutputError, match="No space"):
            write()
    assert {path.read_bytes() for path in old.values()} == {b"old"}
    assert {path.name for path in tmp_path.iterdir()} == set(old)


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda content: write_bytes(path, content), contents * 5):
            pass
    assert path.read_bytes() in contents
    assert [one.name for one in tmp_path.iterdir()] == ["a.bin"]


def test_the_content_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    replace, sync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (happened.append("fsync"), sync(fd))[1])
    monkeypatch.setattr(
        Path, "replace", lambda path, to: (happened.append("replace"), replace(path, to))[1]
    )
    write_bytes(tmp_path / "a", b"new")
    write_arrays(tmp_path / "b", rows=np.zeros(3))
    assert [step for step in happened if step == "replace"] == ["replace", "replace"]
    assert happened.index("fsync") < happened.index("replace")
    assert happened[happened.index("replace") + 1 :].count("fsync") >= 1


def test_nothing_is_left_beside_a_file_that_was_written(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"new")
    write_arrays(tmp_path / "b", rows=np.zeros(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_path_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    require_new_file("output", tmp_path / "a.html")
    for path in (tmp_path, tmp_path / "nowhere" / "a.html"):
        with pytest.raises(InvalidArgument, match=r"^output must be a file in a folder"):
            require_new_file("output", path)
