"""Every error class has a stable code; docs/errors.md and the command line show it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import make_errors_page
import pytest
from calling import Called
from make_errors_page import EXIT_CODES, GROUPS, PAGE, error_classes, page_text, read_entry
from without_extras import skip_if_asked_for

from dpaudit.cli.entry_point import _run, cli
from dpaudit.vocabulary import errors
from dpaudit.vocabulary.errors import DpauditError, ExitCode, InvalidArgument, InvalidPolicy

CODES = {
    "DPA000": "DpauditError",
    "DPA101": "InvalidArgument",
    "DPA102": "CommandLineError",
    "DPA103": "InvalidPolicy",
    "DPA104": "UserCodeError",
    "DPA201": "UnreadableFile",
    "DPA202": "UnwritableFile",
    "DPA203": "InvalidData",
    "DPA204": "UnsupportedVersion",
    "DPA301": "IntegrityError",
    "DPA302": "RunExists",
    "DPA303": "RunLocked",
    "DPA304": "StaleVerdict",
    "DPA401": "ForkedSession",
    "DPA402": "NoiseReused",
    "DPA403": "UnrecordedChange",
    "DPA405": "GradientsDisagree",
    "DPA404": "InvalidUpdate",
    "DPA411": "ProtocolViolation",
    "DPA412": "TooFewParticipants",
    "DPA413": "ReplayedRound",
    "DPA414": "UnmaskingRefused",
    "DPA501": "Refuted",
    "DPA601": "MissingExtra",
    "DPA602": "InputOutputError",
    "DPA603": "ClosedPipe",
    "DPA701": "UnsupportedMechanism",
    "DPA702": "AccountingError",
    "DPA703": "Unresolvable",
    "DPA704": "BudgetExceeded",
    "DPA705": "ImpossibleConversion",
}
"""The codes that users know: add new ones, and never change or remove a line."""


def test_no_code_changes_and_every_class_has_one() -> None:
    assert {kind.code: kind.__name__ for kind in error_classes()} == CODES


def test_each_class_declares_its_own_code() -> None:
    kinds = list(error_classes())
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert "code" in vars(kind)
        assert re.fullmatch(r"DPA\d{3}", kind.code)
        assert kind.code[3] in GROUPS


def test_every_error_class_of_dpaudit_is_in_one_module() -> None:
    """A class elsewhere would have a code that the page does not show."""
    __import__("dpaudit.cli.entry_point")
    assert {kind.__module__ for kind in error_classes()} == {errors.__name__}


def test_every_exit_code_is_explained() -> None:
    assert set(EXIT_CODES) == set(ExitCode)


# The page.


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "python tools/make_errors_page.py"


@pytest.mark.parametrize("kind", list(error_classes()), ids=lambda kind: kind.__name__)
def test_each_docstring_names_the_exit_code_and_a_remedy(kind: type[DpauditError]) -> None:
    entry = read_entry(kind)
    assert entry.summary.endswith(".")
    assert len(entry.remedy.split()) > 4


@pytest.mark.parametrize(
    "text",
    [
        None,
        "Summary.",
        "Summary.\n\nExit code: 3.\n\nRemedy: Correct it.",
        "Summary.\n\nRemedy: Correct it.\n\nExit code: 2.",
        "Summary.\n\nExit code: 2.\n\nRemedy:",
    ],
)
def test_an_incomplete_docstring_is_refused(text: str | None) -> None:
    kind = type("Incomplete", (InvalidArgument,), {"__doc__": text, "__module__": "tests"})
    with pytest.raises(ValueError, match="paragraph"):
        read_entry(kind)


def test_check_reports_a_page_that_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_errors_page, "PAGE", tmp_path / "errors.md")
    (tmp_path / "errors.md").write_text("old")
    assert make_errors_page.main(["--check"]) == 1
    assert make_errors_page.main([]) == 0
    assert make_errors_page.main(["--check"]) == 0
    assert make_errors_page.main(["--chek"]) == 2


def test_every_command_and_option_that_a_remedy_names_exists() -> None:
    commands = list(_commands(cli))
    names = {command.name for command in commands} | {"COMMAND"}
    options = {option for command in commands for one in command.params for option in one.opts} | {
        "--help"
    }
    for entry in map(read_entry, error_classes()):
        for quoted in re.findall(r"`([^`]+)`", " ".join((*entry.details, entry.remedy))):
            assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", quoted)) <= options
            assert set(re.findall(r"(?<!\S)dpaudit ([\w-]+)", quoted)) <= names


def _commands(command: click.Command) -> list[click.Command]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(found for one in inner for found in _commands(one))]


# What a user of Python sees.


def test_the_text_of_an_error_is_its_message_alone() -> None:
    error = InvalidArgument("steps", 0, "above 0")
    assert str(error) == "steps must be above 0, got 0"
    assert error.code == "DPA101"


def test_a_policy_error_keeps_the_message_of_the_value() -> None:
    value = InvalidArgument("claim.delta", 2, "below 1")
    policy = InvalidPolicy.of(value)
    assert (str(policy), policy.name) == (str(value), "claim.delta")


# What the command line prints.


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[str], Called]:
    """Call the program in a folder with a few broken files."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(arguments: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["dpaudit", *arguments.split()])
        code = _run()
        captured = capsys.readouterr()
        return Called(int(code), captured.out, captured.err)

    return run


FILES = {
    "empty/notes.txt": "no run",
    "object.json": "{}",
    "torn.json": '{"a": ',
    "torn.toml": "[claim",
    "unknown.toml": "[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\nmax_epsilno = 2.0\n",
    "accountant.toml": '[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\naccountant = "zcdp"\n',
    "loss.csv": "score,member\n" + "1,0\n2,0\n3,0\n4,0\n0,1\n0.1,1\n0.2,1\n0.3,1\n" * 10,
    "members.csv": "score,member\n1,1\n2,1\n",
    "id.csv": "id,score\n1,0.5\n",
    "torn/ledger.jsonl": '{"hash": "',
    "wrong/ledger.jsonl": "{}\n",
    "newer/ledger.jsonl": '{"entry":{"kind":"header","schema_version":"9.0"},"hash":""}\n',
    "run.sqlite/x": "",
}
PLAN = "--noise-multiplier 1 --sampling-rate 0.1 --steps 10 --delta 1e-5"
PRINTED = {
    f"epsilon {PLAN} --noise-multiplier -1": "DPA101",
    f"epsilon {PLAN} --noise-multiplier nan": "DPA101",
    f"epsilon {PLAN} --sampling-rate 2": "DPA101",
    f"epsilon {PLAN} --steps 0": "DPA101",
    f"epsilon {PLAN} --steps many": "DPA102",
    f"epsilon {PLAN} --delta 2": "DPA101",
    f"epsilon {PLAN} --sampling full-batch": "DPA101",
    f"epsilon {PLAN} --epochs 1": "DPA102",
    f"epsilon {PLAN} --sampling shuffled": "DPA701",
    f"epsilon {PLAN} --noise-set-for replace-one": "DPA102",
    f"epsilon {PLAN} --noise-multiplier 1e-160 --sampling-rate 1": "DPA703",
    "epsilon --noise-multiplier 1 --delta 1e-5": "DPA102",
    "epsilon nowhere": "DPA101",
    "epsilon empty": "DPA301",
    "epsilon torn": "DPA301",
    "epsilon wrong": "DPA301",
    "epsilon newer": "DPA204",
    "epsilon --from opacus --delta 1e-5": "DPA102",
    "epsilon --from opacus nowhere.json --delta 1e-5": "DPA201",
    "epsilon --from opacus torn.json --delta 1e-5": "DPA201",
    "epsilon --from dp-event object.json --delta 1e-5": "DPA101",
    "attack": "DPA102",
    "attack --scores nowhere.csv": "DPA201",
    "attack --scores torn.toml": "DPA101",
    "attack --scores id.csv": "DPA203",
    "attack --scores members.csv": "DPA101",
    "attack --scores loss.csv": "DPA101",
    "attack --scores loss.csv --no-such-option": "DPA102",
    "audit": "DPA102",
    "gate": "DPA102",
    "gate --claim-epsilon 4 --scores loss.csv --history .": "DPA102",
    "config show": "DPA103",
    "config show --policy nowhere.toml": "DPA201",
    "config show --policy torn.toml": "DPA103",
    "config show --policy unknown.toml": "DPA103",
    "config show --policy accountant.toml": "DPA103",
    "config show --set max_epsilon=3": "DPA103",
    "config show --set clam.max_epsilon=3": "DPA103",
    "history nowhere": "DPA101",
    "report empty torn": "DPA102",
    "conformance nowhere:make": "DPA102",
    "no-such-command": "DPA102",
}


@pytest.mark.parametrize("arguments", PRINTED)
def test_the_command_line_prints_the_code_in_one_line(
    arguments: str, call: Callable[[str], Called], pytestconfig: pytest.Config
) -> None:
    done = call(arguments)
    skip_if_asked_for(pytestconfig, done.err)
    (kind,) = (kind for kind in error_classes() if kind.code == PRINTED[arguments])
    assert done.err.startswith(f"dpaudit: error {kind.code}: ")
    assert done.err.count("\n") == 1
    assert (done.code, done.out) == (kind.exit_code, "")


def test_a_bug_is_printed_with_the_code_of_the_base_class(
    call: Callable[[str], Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise KeyError("unexpected")

    # Another test may have imported this one's package as a user's module.
    monkeypatch.setattr("dpaudit.files.user_code._modules", set())
    monkeypatch.setattr("dpaudit.cli.entry_point._invoked", fail)
    done = call("epsilon")
    assert done.code == ExitCode.BUG
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("dpaudit: error DPA000: ")
