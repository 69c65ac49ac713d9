"""docs/errors.md and the code list the same errors, and say what the program really says."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import list_errors
import pytest
from calling import Called
from list_errors import DOCUMENT, PACKAGE, USUAL, Entry, documented, exit_code, found_in_code
from places import ROOT
from spoken import read_modules
from without_extras import skip_if_asked_for

from dpaudit.cli.main import _run, cli
from dpaudit.vocabulary.errors import DpauditError


@pytest.fixture(scope="session")
def in_code() -> Mapping[Entry, list[str]]:
    return found_in_code(read_modules(PACKAGE))


@pytest.fixture(scope="session")
def in_words() -> Mapping[Entry, str]:
    return documented(DOCUMENT.read_text())


def test_every_error_of_the_code_is_documented(
    in_code: Mapping[Entry, list[str]], in_words: Mapping[Entry, str]
) -> None:
    missing = [f"{entry}  {', '.join(in_code[entry])}" for entry in in_code.keys() - in_words]
    assert not missing, "\n".join(["add to docs/errors.md:", *missing])


def test_every_documented_error_is_one_of_the_code(
    in_code: Mapping[Entry, list[str]], in_words: Mapping[Entry, str]
) -> None:
    superfluous = [str(entry) for entry in in_words.keys() - in_code]
    assert not superfluous, "\n".join(["nothing raises these of docs/errors.md:", *superfluous])


def test_no_raise_is_left_out(in_code: Mapping[Entry, list[str]]) -> None:
    """Every line that begins with ``raise`` and a class stands among the places."""
    places = {place for found in in_code.values() for place in found}
    raising = re.compile(r"\s*raise (?:\w+\.)?[A-Z]\w*\b")
    for path in sorted((ROOT / "dpaudit").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if raising.match(line):
                assert f"{path.relative_to(ROOT)}:{number}" in places


# A guard against words that would fit anything.


def test_every_remedy_is_there_and_of_its_own(in_words: Mapping[Entry, str]) -> None:
    assert not [str(entry) for entry, remedy in in_words.items() if len(remedy.split()) < 3]
    shared = Counter(in_words.values())
    assert not [remedy for remedy, times in shared.items() if times > 2]


def test_no_remedy_says_only_that_something_else_is_right(in_words: Mapping[Entry, str]) -> None:
    filler = re.compile(r"(?i)\b(a valid|an? allowed|an? appropriate|the correct) (value|\w+)\b")
    assert not [remedy for remedy in in_words.values() if filler.search(remedy)]


def test_every_option_that_a_remedy_names_exists(in_words: Mapping[Entry, str]) -> None:
    of_others = {"--help", "--dpaudit-run", "--logdir", "--upgrade"}
    known = {option for command in _commands(cli) for option in _options(command)} | of_others
    for remedy in in_words.values():
        for code in re.findall(r"`([^`]+)`", remedy):
            assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) <= known, remedy


def test_every_command_that_a_remedy_names_exists(in_words: Mapping[Entry, str]) -> None:
    for remedy in in_words.values():
        for name in re.findall(r"`dpaudit ([a-z]+)", remedy):
            assert name in cli.commands, remedy


def _commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _commands(inner)


def _options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


# What the program really says.


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
    "run.sqlite/x": "",
}
PLAN = "--noise-multiplier 1 --sampling-rate 0.1 --steps 10 --delta 1e-5"
SAID = {
    f"epsilon {PLAN} --noise-multiplier -1": "{name} must be above 0 and finite, got {given}",
    f"epsilon {PLAN} --noise-multiplier nan": "{name} must be above 0 and finite, got {given}",
    f"epsilon {PLAN} --sampling-rate 2": "sampling_rate must be above 0 and at most 1, got {given}",
    f"epsilon {PLAN} --steps 0": "{name} must be a whole number of at least {least}, got {given}",
    f"epsilon {PLAN} --delta 2": "delta must be at least 1e-300 and below 1, got {given}",
    f"epsilon {PLAN} --sampling full-batch": "sampling_rate must be 1 for full batches, got {rate}",
    f"epsilon {PLAN} --epochs 1": "give --sampling-rate and --steps, or --dataset-size, "
    "--batch-size and --epochs",
    f"epsilon {PLAN} --sampling shuffled": "{mechanism}: shuffled batches under "
    "add-or-remove-one: a record more moves others between batches; use --adjacency zero-out or "
    "replace-one",
    f"epsilon {PLAN} --noise-set-for replace-one": "--noise-set-for is for --from dp-event",
    f"epsilon {PLAN} --noise-multiplier 1e-160 --sampling-rate 1": "nothing can be certified "
    "here: no value up to {most} is enough; add noise, or ask for a larger delta",
    "epsilon --noise-multiplier 1 --delta 1e-5": "missing option {option}",
    "epsilon nowhere": "run must be a run directory that exists, got {path}",
    "epsilon empty": "{path} is no run directory, or incomplete: it has no ledger.jsonl",
    "epsilon torn": "{path} ends with {number} bytes that are no incomplete line ({error}): the "
    "ledger was damaged, and what it has lost cannot be told; restore it from a copy",
    "epsilon wrong": "{path}, line {number} is broken: {error}",
    "epsilon --from opacus --delta 1e-5": "--from {source} needs a FILE",
    "epsilon --from opacus nowhere.json --delta 1e-5": "{name} must be readable ({why}), got "
    "{path}",
    "epsilon --from opacus torn.json --delta 1e-5": "{name} must be readable ({why}), got "
    "{path}",
    "epsilon --from dp-event object.json --delta 1e-5": "event must be a DpEvent, its named "
    "tuple, or the JSON of that, got {given}",
    "attack": "give one of RUN, --data or --scores, or a RUN with its --scores",
    "attack --scores nowhere.csv": "{name} must be readable ({why}), got {given}",
    "attack --scores torn.toml": "scores must be a file of kind {suffixes}, got {path}",
    "attack --scores id.csv": "scores must be a table with columns {required}; it has {columns}, "
    "got {path}",
    "attack --scores members.csv": "nonmembers must be a finite, non-empty list of scores, got "
    "'scores of shape {shape}'",
    "attack --scores loss.csv": "scores must be larger for members: the sign looks inverted (a "
    "loss? score by its negative), got 'an AUC of {auc}'",
    "audit": "give a RUN, --scores, or --canaries with scores or a model",
    "gate": "give a RUN, or --claim-epsilon with --scores, --audit, --attack or --conformance",
    "gate --claim-epsilon 4 --scores loss.csv --history .": "--history remembers runs: give a RUN",
    "config show": "policy must be in {dpaudit.toml} or {pyproject.toml}: dpaudit init RUN writes "
    "one, got 'none'",
    "config show --policy nowhere.toml": "{name} must be readable ({why}), got {given}",
    "config show --policy torn.toml": "policy must be valid TOML ({error}), got {path}",
    "config show --policy unknown.toml": "policy must be a valid policy ({error}), got "
    "'{sources}'",
    "config show --policy accountant.toml": "claim.accountant must be naive, rdp or pld, got "
    "{given}",
    "config show --set max_epsilon=3": "set must be KEY=VALUE, such as claim.max_epsilon=3, got "
    "{given}",
    "config show --set clam.max_epsilon=3": "policy must be of one of the sections {sections}, "
    "got '--set {key}'",
    "history nowhere": "history must be a folder of runs that exists, and no run, got {path}",
    "report empty torn": "the page of two runs is neither's own: say where with --output",
    "conformance nowhere:make": "missing option {option}",
}  # fmt: skip


@pytest.mark.parametrize("arguments", SAID)
def test_what_the_program_says_is_what_is_documented(
    arguments: str,
    call: Callable[[str], Called],
    in_words: Mapping[Entry, str],
    pytestconfig: pytest.Config,
) -> None:
    done = call(arguments)
    skip_if_asked_for(pytestconfig, done.err)
    assert done.err.startswith("dpaudit: ")
    assert done.err.count("\n") == 1
    (entry,) = _most_telling(done.err.removeprefix("dpaudit: ").rstrip("\n"), in_words)
    assert entry.bare == Entry.of("", SAID[arguments]).bare
    assert exit_code(entry.kind) == done.code


def test_an_unknown_message_matches_nothing(in_words: Mapping[Entry, str]) -> None:
    assert _most_telling("epsilon cannot be this small", in_words) == []


def _most_telling(message: str, entries: Mapping[Entry, str]) -> list[Entry]:
    """Return the entries that ``message`` is an instance of, those with most words of it."""
    printed = [entry for entry in entries if exit_code(entry.kind) is not None]
    matching = [entry for entry in printed if _pattern(entry.bare).fullmatch(message)]
    most = max((len(entry.bare) for entry in matching), default=0)
    return [entry for entry in matching if len(entry.bare) == most]


def _pattern(bare: str) -> re.Pattern[str]:
    """What differs is anything; Python quotes text in either way."""
    parts = [re.escape(part).replace("'", "['\"]") for part in bare.split("{}")]
    return re.compile("(.+)".join(parts))


# What the tool reads: each way in which the code makes an error.

EXAMPLES = {
    'raise InvalidArgument("steps", steps, "above 0")': "steps must be above 0, got {}",
    'raise InvalidArgument("data", "no rows", "some")': "data must be some, got 'no rows'",
    'raise InvalidArgument("data", f"{len(x)} rows", "two")': "data must be two, got '{} rows'",
    'raise errors.InvalidArgument("x", 1, f"below {x:g}")': "x must be below {}, got 1",
    'raise InvalidArgument("x", 1, f"a {KINDS}")': "x must be a .csv or .npz, got 1",
    'allowed = "small"\n    raise InvalidArgument("x", x, allowed)': "x must be small, got {}",
    'raise InvalidArgument("x", x, "a" if x else "b")': "x must be a, got {}; x must be b, got {}",
    'raise InvalidArgument("x", x, f"one of {\', \'.join(KINDS)}")': "x must be one of {}, got {}",
    'raise InvalidArgument("x", x, why(x))': "x must be {}, got {}",
    'raise IntegrityError(f"{x!r} is\\n  torn")': "{} is torn",
    'raise UnsupportedMechanism(x, "no price")': "{}: no price",
    'raise MissingExtra("pandas", "train")': "pandas is not installed: pip install "
    "'dpaudit[train]'",
    'raise click.UsageError("give a " + x)': "give a {}",
    'raise Ours("twice")': "twice",
    'raise ValueError(f"{x} here")': "{} here",
    "raise made(x)": "Unread",
}
BEFORE = """
import click
from dpaudit.vocabulary import errors
from dpaudit.vocabulary.errors import *
KINDS = ".csv or .npz"
class Ours(RuntimeError): ...
def why(x): return x.text
def case(x):
    """


@pytest.mark.parametrize("code", EXAMPLES)
def test_each_way_of_raising_is_read(code: str, tmp_path: Path) -> None:
    found = _found(tmp_path, BEFORE + code)
    said = "; ".join("Unread" if entry.kind == "Unread" else entry.bare for entry in found)
    assert said == EXAMPLES[code]


def test_what_is_raised_again_is_no_further_error(tmp_path: Path) -> None:
    code = "try: ...\n    except OSError as error:\n        raise error.__cause__ from error"
    assert _found(tmp_path, BEFORE + code) == []


def test_an_error_that_a_method_makes_is_read_where_it_is_made(tmp_path: Path) -> None:
    code = """
    raise x.refused("it is late")
class A:
    def refused(self, why: str) -> InvalidArgument:
        return InvalidArgument("x", self.x, f"early: {why}")
"""
    (entry,) = _found(tmp_path, BEFORE + code)
    assert entry.bare == "x must be early: it is late, got {}"


def test_few_names_are_spelled_out_and_many_are_not(tmp_path: Path) -> None:
    helper = """
    raise_it("a", 1)
def raise_it(name, value):
    raise InvalidArgument(name, value, "small")
"""
    few, many = "raise_it('b', 1)\n", "raise_it('b', 1); raise_it('c', 1); raise_it('d', 1)\n"
    assert [e.bare for e in _found(tmp_path, BEFORE + helper + few)] == [
        "a must be small, got {}",
        "b must be small, got {}",
    ]
    assert [e.bare for e in _found(tmp_path, BEFORE + helper + many)] == [
        "{} must be small, got {}"
    ]


def test_arguments_of_one_call_stay_together(tmp_path: Path) -> None:
    code = """
    raise_it("a", "small")
    raise_it("b", "large")
def raise_it(name, allowed):
    raise InvalidArgument(name, None, allowed)
"""
    said = [entry.bare for entry in _found(tmp_path, BEFORE + code)]
    assert said == ["a must be small, got None", "b must be large, got None"]


def _found(folder: Path, code: str) -> list[Entry]:
    ast.parse(code)
    (folder / "example.py").write_text(code)
    return sorted(found_in_code(read_modules(folder)))


# What the tool refuses to read.


@pytest.mark.parametrize(
    "text",
    [
        "## Exit code 2\n- `a`: do\n",
        "## Exit code 2\n- `a` (InvalidArgument):\n  do\n",
        "## Exit code 2\n- `a`:\n  do\n- `a`:\n  do\n",
        "## Exit code 4\n- `a` (*UsageError*):\n  do\n",
        "## In Python alone\n- `a` (*IntegrityError*):\n  do\n",
    ],
)
def test_an_entry_that_would_be_misread_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line "):
        documented(text)


def test_a_remedy_may_have_several_lines() -> None:
    found = documented("## Exit code 4\n- `a {x}`:\n  Do this,\n  then that.\n\nProse.\n")
    assert found == {Entry.of("IntegrityError", "a {y}"): "Do this, then that."}


def test_every_exit_code_has_its_usual_class() -> None:
    for code, kind in USUAL.items():
        assert exit_code(kind) == code


def test_every_class_of_errors_has_a_place(in_words: Mapping[Entry, str]) -> None:
    kinds = {entry.kind for entry in in_words}
    assert {kind.__name__ for kind in _below(DpauditError)} <= kinds


def _below(kind: type[DpauditError]) -> Iterator[type[DpauditError]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _below(inner)


def test_the_tool_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(list_errors, "DOCUMENT", tmp_path / "errors.md")
    (tmp_path / "errors.md").write_text("## Exit code 4\n- `a`:\n  do\n")
    assert list_errors.main() == 1
    printed = capsys.readouterr().out
    assert "- `delta must be at least 1e-300 and below 1, got {given}`:" in printed
    assert printed.rstrip().endswith("- `a`:")
