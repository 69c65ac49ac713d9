"""``dpaudit gate`` recomputes audit.json from its counts, and demands every promised bound."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calling import Call

from dpaudit.cli.entry_point import _run

POLICY = """
[claim]
max_epsilon = 20.0
delta = 1e-5
[audit]
count = ["certified", "conditional"]
min_power_epsilon = 30.0
max_tpr_at_fpr = { "0.1" = 0.95 }
"""
Report = dict[str, Any]
Edit = Callable[[Report], None]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with gradient and input canaries that passes the policy."""
    import dpaudit.trainer  # noqa: F401  its error names a library that is missing

    run = tmp_path_factory.mktemp("audited") / "run"
    plan = "--noise-multiplier 0.7 --steps 12 --sampling-rate 0.1 --model linear"
    canaries = f"--canaries 300 --input-canaries 30 --out {run}"
    with pytest.MonkeyPatch.context() as patch:
        for line in (f"train {plan} {canaries}", f"audit {run}"):
            patch.setattr(sys, "argv", ["dpaudit", *line.split()])
            assert _run() == 0
    return run


@pytest.fixture
def gate(audited: Path, call: Call, tmp_path: Path) -> Callable[..., Any]:
    """Judge the run with an edited audit.json, or any other text in its place."""
    path = tmp_path / "p.toml"
    kept = (audited / "audit.json").read_text()

    def judged(edit: Edit | None = None, text: str | None = None, policy: str = POLICY) -> Any:
        path.write_text(policy)
        report = json.loads(kept)
        if edit is not None:
            edit(report)
        (audited / "audit.json").write_text(json.dumps(report) if text is None else text)
        try:
            return call("gate", audited, "--policy", path)
        finally:
            (audited / "audit.json").write_text(kept)

    return judged


def bound(report: Report, name: str) -> dict[str, Any]:
    return next(one for one in report["bounds"] if one["name"].startswith(name))


def with_bound(name: str, /, **changes: object) -> Edit:
    return lambda report: bound(report, name).update(changes)


def with_estimator(name: str, /, **changes: object) -> Edit:
    return lambda report: bound(report, name)["estimator"].update(changes)


def test_unaltered_audit_passes(gate: Callable[..., Any]) -> None:
    result = gate()
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("delta", "claims", "code"),
    [("1e-5", 1, 0), ("1e-6", 2, 3)],  # at another delta, the bounds of the audit decide nothing
    ids=["own delta", "another delta"],
)
def test_one_evaluation_computes_each_claim_once(
    gate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, delta: str, claims: int, code: int
) -> None:
    """The claim at the run's own delta, and another one only for a policy of another delta."""
    from dpaudit.accountants import answers

    asked: list[float] = []
    compute = answers.compute_epsilon

    def counted(accountant: str, mechanism: Any, at: float, *rest: Any) -> Any:
        asked.append(at)
        return compute(accountant, mechanism, at, *rest)

    monkeypatch.setattr(answers, "compute_epsilon", counted)
    policy = POLICY.replace("delta = 1e-5", f"delta = {delta}")
    assert gate(policy=policy).code == code
    assert (len(asked), set(asked)) == (claims, {1e-5, float(delta)})


def other_factor(name: str, factor: float | None) -> Edit:
    """Write another noise factor than the least that is refuted, whichever that is."""

    def edit(report: Report) -> None:
        estimator = bound(report, name)["estimator"]
        estimator["noise_factor"] = 2.0 if estimator["noise_factor"] == factor else factor

    return edit


NAMES = ("gradient canaries", "claimed curve", "ranks", "rates by", "means by", "input canaries")


@pytest.mark.parametrize(
    ("name", "epsilon"), [*((name, 0.0) for name in NAMES), ("ranks", 1e-3), ("means by", 19.0)]
)
def test_bound_that_contradicts_its_counts_is_an_altered_file(
    gate: Callable[..., Any], name: str, epsilon: float
) -> None:
    def edit(report: Report) -> None:
        one = bound(report, name)
        # What says 0 is moved away from it.
        one["epsilon_lower"] = epsilon if one["epsilon_lower"] != epsilon else 0.5

    result = gate(edit)
    assert result.code == 4
    assert f"of {name!r}"[:-1] in result.err
    assert "its counts give" in result.err


@pytest.mark.parametrize("ulps", [1, 1000])
def test_last_digits_may_differ_between_machines(gate: Callable[..., Any], ulps: int) -> None:
    def edit(report: Report) -> None:
        for one in report["bounds"]:
            one["epsilon_lower"] *= 1 + ulps * 2.3e-16

    assert gate(edit).code == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_that_is_gone_leaves_the_audit_incomplete(
    gate: Callable[..., Any], name: str
) -> None:
    result = gate(lambda report: report["bounds"].remove(bound(report, name)))
    assert result.code == 3
    assert f"the audit lacks {name}" in result.out
    assert "dpaudit audit RUN" in result.out


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (with_bound("means by", kind="estimate"), "kind"),
        (with_bound("means by", kind="certified"), "kind"),
        (with_bound("gradient canaries", kind="conditional"), "kind"),
        (with_bound("ranks", confidence=0.9999), "confidence"),
        (with_bound("ranks", trials=301), "trials"),
        (with_bound("ranks", delta=2e-5), "delta"),
        (with_bound("means by", delta=1e-6), "delta"),
        (with_bound("rates by", detectable_epsilon=6.0), "detectable_epsilon"),
        (with_bound("means by", detectable_epsilon=19.5), "detectable_epsilon"),
        (with_bound("gradient canaries", detectable_epsilon=0.01), "detectable_epsilon"),
        (with_bound("gradient canaries", greatest_epsilon=99.0), "greatest_epsilon"),
        (with_bound("input canaries", greatest_epsilon=9.0), "greatest_epsilon"),
        (with_bound("input canaries", name="another"), "no audit of this run has"),
        (other_factor("ranks", None), "noise_factor"),
        (other_factor("claimed curve", 0.7), "noise_factor"),
        (with_estimator("rates by", hits=1), "epsilon_lower"),
        (with_estimator("gradient canaries", also=[]), "epsilon_lower|confidence|greatest"),
        (with_bound("means by", estimator={"kind": "one-run"}), "estimator"),
        (lambda report: report["bounds"].append(report["bounds"][0]), "confidence|twice"),
    ],
)
def test_number_that_contradicts_its_counts_is_an_altered_file(
    gate: Callable[..., Any], edit: Edit, told: str
) -> None:
    result = gate(edit)
    assert result.code == 4
    assert any(word in result.err for word in told.split("|"))


@pytest.mark.parametrize("name", ["means by", "ranks"])
def test_a_bound_without_its_counts_is_no_evidence(gate: Callable[..., Any], name: str) -> None:
    """Other bounds do not make up for it: it may have contradicted the claim."""

    def hidden(report: Report) -> None:
        bound(report, name).pop("estimator")
        bound(report, name).update(epsilon_lower=0.0)

    result = gate(hidden)
    lines = [line for line in result.out.splitlines() if "audit.lower_bound" in line]
    assert "the audit lacks the counts of" in lines[0]
    assert result.code == 3

    def none_of_them(report: Report) -> None:
        for one in report["bounds"]:
            one.pop("estimator")

    assert gate(none_of_them).code == 3


IMPOSSIBLE: dict[str, Edit] = {
    "confidence of 1.5": lambda report: report.update(confidence=1.5),
    "confidence of 0": lambda report: report.update(confidence=0.0),
    "more than its bounds have": lambda report: report.update(confidence=0.99999),
    "a bound surer than certain": with_bound("ranks", confidence=1.0),
    "negative bound": with_bound("ranks", epsilon_lower=-1.0),
    "negative power": with_bound("ranks", detectable_epsilon=-1e9),
    "negative largest": with_bound("input canaries", greatest_epsilon=-0.1),
    "more right than guessed": with_bound("ranks", correct=301),
    "more guessed than there are": with_bound("ranks", guesses=301, correct=0),
    "negative count": with_bound("ranks", correct=-1),
    "half a guess": with_bound("ranks", correct=0.5),
    "delta of 1": with_bound("ranks", delta=1.0),
    "hits of nothing": with_estimator("rates by", hits=10**9),
    "text": with_bound("ranks", epsilon_lower="0.5"),
    "accuracy of 2": lambda report: report.update(heldout_accuracy=2.0),
    "rate of 2": lambda report: report["membership"][0]["tpr_at_fpr"][0].update(tpr=2.0),
    "rate of no one": lambda report: report["membership"][0].update(nonmembers=0),
    "inverted interval": lambda report: report["membership"][0]["tpr_at_fpr"][0].update(
        interval={"lower": 0.5, "upper": 0.1}
    ),
    "interval elsewhere": lambda report: report["membership"][0]["tpr_at_fpr"][0].update(
        interval={"lower": 0.0, "upper": 1e-9}
    ),
    "narrower interval": lambda report: report["membership"][0]["tpr_at_fpr"][0]["interval"].update(
        upper=report["membership"][0]["tpr_at_fpr"][0]["tpr"]
    ),
    "more hits than members": lambda report: report["membership"][0]["tpr_at_fpr"][0].update(
        greatest_hits=10**6
    ),
}


@pytest.mark.parametrize("edit", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_impossible_values_are_a_broken_file(gate: Callable[..., Any], edit: Edit) -> None:
    result = gate(edit)
    assert result.code == 4
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_no_number_is_no_json(gate: Callable[..., Any], audited: Path, constant: str) -> None:
    text = (audited / "audit.json").read_text()
    broken = text.replace('"confidence": 0.95', f'"confidence": {constant}', 1)
    assert broken != text
    assert gate(text=broken).code == 4


@pytest.mark.parametrize("place", ['"bounds": [', '"estimator": {'])
def test_a_key_that_comes_twice_is_a_broken_file(
    gate: Callable[..., Any], audited: Path, place: str
) -> None:
    text = (audited / "audit.json").read_text()
    twice = {
        '"bounds": [': '"bounds": [], "bounds": [',
        '"estimator": {': '"estimator": {"kind": "one-run", ',
    }[place]
    result = gate(text=text.replace(place, twice, 1))
    assert result.code == 4
    assert "twice" in result.err


@pytest.mark.parametrize("name", ["claim.json", "verdict.json"])
def test_no_other_file_of_a_run_names_a_key_twice(
    audited: Path, call: Call, tmp_path: Path, name: str
) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text(POLICY)
    assert call("gate", audited, "--policy", policy).code == 0
    kept = (audited / name).read_text()
    (audited / name).write_text(kept.replace("{", '{"schema_version": "2.0",', 1))
    try:
        result = call("report", audited)
        assert result.code == 4
        assert "twice" in result.err
    finally:
        (audited / name).write_text(kept)


def rates_of(report: Report) -> list[dict[str, Any]]:
    return [rate for one in report["membership"] for rate in one["tpr_at_fpr"]]


@pytest.mark.parametrize("lost", ["least_hits", "greatest_hits"])
def test_a_rate_without_its_counts_is_no_evidence(gate: Callable[..., Any], lost: str) -> None:
    def edit(report: Report) -> None:
        for rate in rates_of(report):
            rate[lost], rate["interval"]["upper"] = None, rate["tpr"]

    result = gate(edit)
    assert result.code == 3
    assert "lack the counts that they are computed from" in result.out


@pytest.mark.parametrize("kept", [[], ["another attack"]])
def test_an_audit_without_its_attack_decides_no_rate(
    gate: Callable[..., Any], kept: list[str]
) -> None:
    def edit(report: Report) -> None:
        for one, name in zip(report["membership"], kept, strict=False):
            one["attack"] = name
        report["membership"] = report["membership"][: len(kept)]

    result = gate(edit)
    assert result.code == 3
    assert "the audit lacks the attack by loss threshold" in result.out


@pytest.mark.parametrize("name", ["ranks", "claimed curve"])
def test_decisive_power_is_simulated_again(gate: Callable[..., Any], name: str) -> None:
    def edit(report: Report) -> None:
        one = bound(report, name)
        one["detectable_epsilon"] = one["refutes_epsilon"] * 1.001

    result = gate(edit)
    assert result.code == 4
    assert "its simulation gives" in result.err


def test_a_greatest_bound_that_is_gone_is_an_altered_file(gate: Callable[..., Any]) -> None:
    result = gate(with_bound("input canaries", greatest_epsilon=None))
    assert result.code == 4
    assert "lacks greatest_epsilon" in result.err


@pytest.mark.parametrize("factor", [1e308, 1e-300])
def test_a_factor_that_no_search_finds_is_refused_at_once(
    gate: Callable[..., Any], factor: float
) -> None:
    result = gate(with_estimator("claimed curve", noise_factor=factor))
    assert result.code == 4
    assert "noise_factor" in result.err


def test_baseline_that_contradicts_its_counts_is_refused(
    audited: Path, call: Call, tmp_path: Path
) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text("[claim]\nmax_epsilon = 20.0\ndelta = 1e-5\n[regression]\n"
                      "max_epsilon_increase = 0.0\n")  # fmt: skip
    copy = Path(shutil.copytree(audited, tmp_path / "copy"))
    report = json.loads((copy / "audit.json").read_text())
    for one in report["bounds"]:
        one["epsilon_lower"] += 3
    (copy / "audit.json").write_text(json.dumps(report))
    assert call("gate", audited, "--policy", policy, "--baseline", copy).code == 4
    assert call("baseline", "write", copy, "-o", tmp_path / "b.json").code == 4
    written = tmp_path / "baseline.json"
    assert call("baseline", "write", audited, "-o", written).code == 0
    kept = json.loads(written.read_text())
    for key, value in (("epsilon", {"lower": 0.0, "upper": 900.0}), ("delta", 1e-3)):
        altered = {**kept, "claim": {**kept["claim"], key: value}}
        written.write_text(json.dumps(altered))
        result = call("gate", audited, "--policy", policy, "--baseline", written)
        assert result.code == 4
        assert "the releases that it lists give" in result.err
