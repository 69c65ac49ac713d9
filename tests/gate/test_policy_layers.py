"""A policy's layers: the later stands above the earlier, and each key has its origin."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from dpaudit.gate.policy import ClaimPolicy, Policy, Waiver
from dpaudit.gate.policy_layers import DEFAULT_ORIGIN, PolicyLayer, merge_layers, policy_values
from dpaudit.vocabulary.errors import InvalidArgument, InvalidPolicy
from dpaudit.workflow.gate.policy_sources import is_policy_configured, load_policy

SHARED = "[tool.dpaudit.claim]\nmax_epsilon = 5.0\ndelta = 1e-6\n[tool.dpaudit.audit]\n"
OWN = """[claim]
max_epsilon = 3.0

[[waiver]]
rule = "claim.sampling"
reason = "r"
expires = 2027-01-31
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dpaudit_toml_overrides_pyproject_by_key(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(SHARED)
    (folder / "dpaudit.toml").write_text(OWN)
    loaded = load_policy(None, (), {})
    assert loaded.policy.claim == ClaimPolicy(max_epsilon=3.0, delta=1e-6)
    assert loaded.policy.audit is not None
    assert loaded.policy.waiver[0].expires == date(2027, 1, 31)
    assert str(loaded.origins["claim.max_epsilon"]) == "dpaudit.toml:2"
    assert str(loaded.origins["claim.delta"]) == "pyproject.toml:3"


def test_variables_stand_above_files_and_options_above_variables(folder: Path) -> None:
    (folder / "dpaudit.toml").write_text(OWN)
    environment = {"DPAUDIT_POLICY_CLAIM_MAX_EPSILON": "2", "DPAUDIT_POLICY_CLAIM_DELTA": "1e-7"}
    loaded = load_policy(None, ("claim.max_epsilon=1.5",), environment)
    assert loaded.policy.claim == ClaimPolicy(max_epsilon=1.5, delta=1e-7)
    origins = {key: str(origin) for key, origin in loaded.overriding_keys().items()}
    assert origins == {
        "claim.max_epsilon": "--set claim.max_epsilon",
        "claim.delta": "$DPAUDIT_POLICY_CLAIM_DELTA",
    }


def test_a_named_file_stands_in_for_those_of_the_folder(folder: Path) -> None:
    (folder / "dpaudit.toml").write_text(OWN)
    other = folder / "other.toml"
    other.write_text("[claim]\nmax_epsilon = 9.0\ndelta = 1e-5\n")
    assert load_policy(other, (), {}).policy == Policy(
        claim=ClaimPolicy(max_epsilon=9.0, delta=1e-5)
    )


def test_words_and_lists_can_be_set_too(folder: Path) -> None:
    assignments = (
        "claim.max_epsilon=1",
        "claim.delta=1e-5",
        "claim.accountant=rdp",
        'claim.sampling=["shuffled"]',
    )
    claim = load_policy(None, assignments, {}).policy.claim
    assert claim is not None
    assert claim.accountant == "rdp"
    assert [one.value for one in claim.sampling] == ["shuffled"]


@pytest.mark.parametrize(
    ("assignments", "environment", "named"),
    [
        (("claim.max_epsilon",), {}, "KEY=VALUE"),
        (("max_epsilon=3",), {}, "KEY=VALUE"),
        (("waiver.rule=x",), {}, "--set waiver.rule"),
        (("claim.max_epsilon=nan",), {}, "max_epsilon"),
        (("claim.colour=1",), {}, "colour"),
        ((), {"DPAUDIT_POLICY_CLAIM_COLOUR": "1"}, "colour"),
        ((), {"DPAUDIT_POLICY_COLOUR": "1"}, "DPAUDIT_POLICY_COLOUR"),
        ((), {"DPAUDIT_POLICY_CLAIM_MAX_EPSILON": "nan"}, "max_epsilon"),
    ],
)
def test_what_is_set_wrongly_is_named(
    folder: Path, assignments: tuple[str, ...], environment: dict[str, str], named: str
) -> None:
    (folder / "dpaudit.toml").write_text("[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\n")
    with pytest.raises(InvalidArgument, match=named):
        load_policy(None, assignments, environment)


CLAIM = "[claim]\nmax_epsilon = 1.0\ndelta = 1e-5\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[claim]\n# a comment\nmax_epsilom = 1.0\n",
            "unknown key claim.max_epsilom in dpaudit.toml:3; did you mean max_epsilon?",
        ),
        ("\n[clam]\ndelta = 1\n", "unknown key clam in dpaudit.toml:2; did you mean claim?"),
        (f"{CLAIM}colour = 1\n", "unknown key claim.colour in dpaudit.toml:4"),
        (
            f"{CLAIM}[[waiver]]\nrul = 1\n",
            "unknown key waiver.0.rul in dpaudit.toml:5; did you mean rule?",
        ),
        (
            f"waiver_max_day = 1\n{CLAIM}",
            "unknown key waiver_max_day in dpaudit.toml:1; did you mean waiver_max_days?",
        ),
        (
            f"{CLAIM}accountant = 'pdl'\n",
            "claim.accountant in dpaudit.toml:4 must be one of naive, rdp, pld, got 'pdl'",
        ),
        (
            "[claim]\nmax_epsilon = 'x'\n",
            "claim.max_epsilon in dpaudit.toml:2 must be a number, got text",
        ),
        ("[claim]\ndelta = 1e-5\n", "claim in dpaudit.toml:1: Object missing required field"),
        (f"{CLAIM}adjacency = 'x'\n", "claim.adjacency in dpaudit.toml:4: Invalid enum value"),
    ],
)
def test_an_error_names_file_line_and_the_closest_key(
    folder: Path, text: str, message: str
) -> None:
    (folder / "dpaudit.toml").write_text(text)
    with pytest.raises(InvalidPolicy) as error:
        load_policy(None, (), {})
    assert str(error.value).startswith(message)


def test_an_error_names_the_line_of_the_second_waiver(folder: Path) -> None:
    waiver = "[[waiver]]\nrule = {!r}\nreason = 'x'\nexpires = 2026-01-01\n"
    text = CLAIM + waiver.format("claim.max_epsilon") + waiver.format("claim.max_epsilom")
    (folder / "dpaudit.toml").write_text(text)
    with pytest.raises(InvalidPolicy, match=r"^waiver.rule in dpaudit.toml:8 must be one of"):
        load_policy(None, (), {})


def test_an_error_of_an_option_names_the_option(folder: Path) -> None:
    (folder / "dpaudit.toml").write_text(CLAIM)
    with pytest.raises(InvalidPolicy) as error:
        load_policy(None, ["claim.max_epsilom=3"], {})
    assert str(error.value) == (
        "unknown key claim.max_epsilom (set by --set claim.max_epsilom); did you mean max_epsilon?"
    )
    with pytest.raises(InvalidPolicy, match=r"^claim.max_epsilon \(set by \$DPAUDIT_POLICY_CLAIM"):
        load_policy(None, (), {"DPAUDIT_POLICY_CLAIM_MAX_EPSILON": "-1"})


def test_missing_policy_names_the_command_that_writes_one(folder: Path) -> None:
    assert not is_policy_configured({})
    with pytest.raises(InvalidArgument, match="dpaudit init RUN"):
        load_policy(None, (), {})
    (folder / "pyproject.toml").write_text("[project]\n")
    assert not is_policy_configured({})


def test_a_section_without_keys_is_there() -> None:
    policy = merge_layers([PolicyLayer("a", {"audit": {}}, {})]).policy
    assert policy.audit is not None
    assert policy.claim is None


def test_the_origin_of_a_rule_is_that_of_its_nearest_key() -> None:
    lines = {"audit": 1, "audit.max_tpr_at_fpr": 2, "audit.max_tpr_at_fpr.0.1": 3, "waiver.0": 9}
    waiver = {"rule": "audit.lower_bound", "reason": "r", "expires": date(2027, 1, 1)}
    content = {"audit": {"max_tpr_at_fpr": {"0.1": 0.3}}, "waiver": [waiver]}
    loaded = merge_layers([PolicyLayer("p.toml", content, lines)])
    assert loaded.policy.waiver == (Waiver(**waiver),)
    assert str(loaded.origin_of("audit.max_tpr_at_fpr.0.1")) == "p.toml:3"
    assert str(loaded.origin_of("audit.lower_bound")) == "p.toml:1"
    assert str(loaded.origin_of("waiver.audit.lower_bound")) == "p.toml:9"
    assert loaded.origin_of("regression.baseline") == DEFAULT_ORIGIN


def test_every_key_is_shown_with_its_value() -> None:
    shown = dict(policy_values(Policy(claim=ClaimPolicy(max_epsilon=3.0, delta=1e-5))))
    assert shown["claim.max_epsilon"] == 3.0
    assert shown["claim.accountant"] == "pld"
    assert not any(key.startswith("audit") for key in shown)


def test_a_key_that_is_set_by_itself_does_not_move_its_section(folder: Path) -> None:
    (folder / "dpaudit.toml").write_text("\n[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\n")
    loaded = load_policy(None, ("claim.delta=1e-6",), {})
    assert str(loaded.origin_of("claim.sampling")) == "dpaudit.toml:2"
    assert str(loaded.origins["claim.delta"]) == "--set claim.delta"


def test_waivers_in_one_line_have_that_line(folder: Path) -> None:
    waiver = '{ rule = "audit.lower_bound", reason = "r", expires = 2020-01-01 }'
    (folder / "dpaudit.toml").write_text(f"\nwaiver = [{waiver}]\n[audit]\n")
    loaded = load_policy(None, (), {})
    assert str(loaded.origin_of("waiver.audit.lower_bound")) == "dpaudit.toml:2"


def test_limits_by_rate_and_waivers_add_up(folder: Path) -> None:
    waiver = '[[{}waiver]]\nrule = "{}"\nreason = "r"\nexpires = 2020-01-01\n'
    (folder / "pyproject.toml").write_text(
        '[tool.dpaudit.audit]\nmax_tpr_at_fpr = { "0.1" = 0.01, "0.2" = 0.5 }\n'
        + waiver.format("tool.dpaudit.", "audit.lower_bound")
    )
    (folder / "dpaudit.toml").write_text(
        '[audit.max_tpr_at_fpr]\n"0.2" = 0.4\n' + waiver.format("", "claim.sampling")
    )
    loaded = load_policy(None, (), {})
    assert loaded.policy.audit is not None
    assert loaded.policy.audit.max_tpr_at_fpr == {"0.1": 0.01, "0.2": 0.4}
    assert [one.rule for one in loaded.policy.waiver] == ["audit.lower_bound", "claim.sampling"]
    assert str(loaded.origin_of("waiver.audit.lower_bound")) == "pyproject.toml:3"
    assert str(loaded.origin_of("waiver.claim.sampling")) == "dpaudit.toml:3"
