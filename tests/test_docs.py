"""README.md and docs/: commands print what the pages show, code runs, links lead somewhere.

Noise decides some figures. They are masked: every number, and the width of columns. Commands
that draw no noise are compared to the letter.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from fill_docs import commands, filled, pages, run_all, shortened
from places import ROOT

from dpaudit.cli.entry_point import _run, cli
from dpaudit.vocabulary.errors import ExitCode
from dpaudit.vocabulary.verdict import Outcome

README = ROOT / "README.md"
GUIDES = ROOT / "docs" / "how_to"
PAGES = {str(path.relative_to(ROOT)): path for path in pages()}
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
NUMBER = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?%?")
LARGEST = re.compile(r"\((certified|conditional): [^)]*\)")  # noise decides which bound it is
STRONGEST = re.compile(r"attack by loss( threshold)?\b")  # of two groups of records: likewise
DETERMINISTIC = "dpaudit epsilon --"


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    return [str(block) for block in found]


# --- output


def masked(text: str) -> str:
    text = DIGEST.sub("#", LARGEST.sub("(a bound)", text))
    text = STRONGEST.sub("strongest attack", text)
    return " ".join(NUMBER.sub("#", text).split())


Run = Callable[[str, Path], str]


@pytest.fixture
def run_inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of a page in this process; return its standard output."""

    def run(command: str, folder: Path) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        capsys.readouterr()
        code = _run()
        printed = capsys.readouterr()
        assert code == ExitCode.PASS, (command, printed.err)
        return printed.out

    return run


@pytest.mark.needs("torch")
def test_each_command_prints_what_the_pages_show(
    tmp_path: Path, run_inside: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noise_words import grid_by_default

    grid_by_default(monkeypatch)  # the pages show what an installation with a compiler prints
    outputs = run_all(tmp_path, run_inside)
    assert {command.split()[1] for command in outputs} == {
        *("train", "epsilon", "audit", "attack", "gate", "report")
    }
    for name, page in PAGES.items():
        for command, below in commands(page.read_text()):
            printed = shortened(outputs[command], below)
            if command.startswith(DETERMINISTIC):
                assert printed == below, name
            else:
                assert masked(printed) == masked(below), name


def test_filling_a_page_keeps_how_much_of_an_output_it_shows() -> None:
    page = "a\n```console\n$ dpaudit a\nold\n...\n$ dpaudit b\nold\n```\nb\n"
    assert list(commands(page)) == [("dpaudit a", "old\n...\n"), ("dpaudit b", "old\n")]
    outputs = {"dpaudit a": "1\n2\n3\n", "dpaudit b": "1\n2\n"}
    expected = "a\n```console\n$ dpaudit a\n1\n...\n$ dpaudit b\n1\n2\n```\nb\n"
    assert filled(page, outputs) == expected
    assert filled(expected, outputs) == expected


# --- commands that are shown without their output


def shown_commands(page: Path) -> Iterator[list[str]]:
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if "dpaudit" in words and words[0] in {"dpaudit", "torchrun"}:
                yield words[words.index("dpaudit") + 1 :]


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that some words call, and what is left of them."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("name", PAGES)
def test_each_shown_command_has_options_that_exist(name: str) -> None:
    for words in shown_commands(PAGES[name]):
        command, left = resolved(words)
        assert not isinstance(command, click.Group), words
        known = {option for one in command.params for option in one.opts}
        options = {word.partition("=")[0] for word in left if re.match(r"--?[a-z]", word)}
        assert options <= known, words


def test_the_guides_show_every_command() -> None:
    shown = {words[0] for page in PAGES.values() for words in shown_commands(page)}
    shown |= {
        command.split()[1] for page in PAGES.values() for command, _ in commands(page.read_text())
    }
    assert cli.commands.keys() - shown == {"completion"}  # named in reference/command_line.md


# --- Python and settings


@pytest.fixture
def run_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.chdir(tmp_path)
    return {}


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", ["account", "audit", "conformance", "own_training_loop"])
def test_the_python_of_a_guide_runs(name: str, run_python: dict[str, object]) -> None:
    found = blocks(GUIDES / f"{name}.md", "python")
    assert found
    for code in found:
        exec(code, run_python)
    if name == "account":
        epsilon = run_python["profile"].epsilon(delta=1e-5)  # type: ignore[attr-defined]
        assert str(epsilon.lower)[:10] == str(epsilon.upper)[:10] == "1.82823666"
    if name == "audit":  # coins that are revealed help where canaries interfere
        assert run_python["result"].correct > run_python["at_once"] + 20  # type: ignore[attr-defined, operator]
    if name == "conformance":
        assert run_python["result"].verdict is Outcome.PASS  # type: ignore[attr-defined]
        assert run_python["server_result"].verdict is Outcome.PASS  # type: ignore[attr-defined]


def test_the_guide_to_other_loops_shows_code_of_the_examples() -> None:
    """``tests/test_examples.py`` runs these."""
    scripts = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    found = blocks(GUIDES / "integrations.md", "python")
    assert len(found) == 7
    assert [code for code in found if not any(code in script for script in scripts)] == []


def test_the_guide_to_flower_runs_on_a_grid(run_python: dict[str, object]) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'dpaudit[federated]'")
    from flower_grid import InProcessGrid, as_server_app

    from dpaudit.runs.directory import open_run

    found = blocks(GUIDES / "flower.md", "python")
    assert len(found) == 4
    for code in found:
        exec(code, run_python)
    with as_server_app():
        for prefix in ("", "secure_"):
            grid = InProcessGrid(run_python[f"{prefix}client"], 4)  # type: ignore[arg-type]
            run_python[f"{prefix}server"](grid, grid.contexts[5])  # type: ignore[operator]
    run_python["accountant"].close()  # type: ignore[attr-defined]
    assert open_run(Path("runs/flower")).read_unfinished().releases == ()
    for name in ("federated", "secure"):
        ledger = open_run(Path("runs", name)).read_finished()
        assert 1 <= len(ledger.releases) <= 10
        assert ledger.rounds[-1].rejected == {}


CANARIES = re.compile(r"GradientCanaries\(\d+\)")


@pytest.mark.needs("torch")
@pytest.mark.parametrize("canaries", [100, pytest.param(None, marks=pytest.mark.slow)])
def test_the_readme_leads_from_your_own_model_to_a_verdict(
    run_python: dict[str, object], canaries: int | None, run_inside: Run
) -> None:
    """With few canaries, whose audit is fast; and, slowly, as it is shown."""
    found = [CANARIES.findall(code) for code in blocks(README, "python")]
    assert any(found)
    for code in blocks(README, "python"):
        fast = code if canaries is None else CANARIES.sub(f"GradientCanaries({canaries})", code)
        exec(fast, run_python)
    assert 2.9 < run_python["private"].epsilon(delta=1e-5).upper <= 3.0  # type: ignore[attr-defined]
    assert {"claim.json", "ledger.jsonl", "model.safetensors"} <= {
        path.name for path in Path("runs/mine").iterdir()
    }
    for command in ("epsilon", "audit", "init", "gate"):
        assert run_inside(f"dpaudit {command} runs/mine", Path.cwd())


def test_the_policy_of_the_guide_is_valid(tmp_path: Path) -> None:
    from dpaudit.workflow.gate.policy_sources import read_policy

    (text,) = blocks(GUIDES / "policy.md", "toml")
    path = tmp_path / "dpaudit.toml"
    path.write_text(text)
    assert read_policy(path).claim.max_epsilon == 3.0


def test_the_policy_of_the_guide_has_every_section() -> None:
    from dpaudit.gate.policy import Policy

    (text,) = blocks(GUIDES / "policy.md", "toml")
    keys = {"waiver" if key == "waivers" else key for key in Policy.__struct_fields__}
    assert keys - tomllib.loads(text).keys() <= {"waiver_max_days", "schema_version"}


def test_the_configuration_file_of_the_guide_is_valid(tmp_path: Path) -> None:
    from dpaudit.workflow.train.settings_layers import read_config_file

    (text,) = blocks(GUIDES / "train.md", "toml")
    path = tmp_path / "settings.toml"
    path.write_text(text)
    file = read_config_file(path)
    assert file.preset == "mnist-scattering"
    assert file.layer["data"]["source"] == str((tmp_path / "mnist.npz").resolve())
    assert file.layer["privacy"]["target_epsilon"] == 2.0


def test_the_settings_and_the_policy_of_the_federated_guide_are_valid(tmp_path: Path) -> None:
    from dpaudit.workflow.gate.policy_sources import read_policy
    from dpaudit.workflow.train.federated_checks import require_usable_plan
    from dpaudit.workflow.train.federated_settings import (
        build_federated_config,
        merge_federated_settings,
        read_federated_file,
    )

    settings, secure, policy = blocks(GUIDES / "federated.md", "toml")
    (tmp_path / "settings.toml").write_text(settings)
    (tmp_path / "policy.toml").write_text(policy)
    layers = [{"data": {"source": "digits"}}, read_federated_file(tmp_path / "settings.toml")]
    config = build_federated_config(merge_federated_settings(layers))
    assert config.federation.participants == 40
    assert config.privacy.noise_multiplier > 0
    require_usable_plan(config)
    (tmp_path / "secure.toml").write_text(secure)
    own = {"privacy": {"noise_multiplier": 2.0, "participation_rate": 1.0}}
    layers = [*layers, read_federated_file(tmp_path / "secure.toml"), own]
    with_sums = build_federated_config(merge_federated_settings(layers))
    assert with_sums.secure_aggregation is not None
    require_usable_plan(with_sums)
    claim = read_policy(tmp_path / "policy.toml").claim
    assert claim.unit.value == "participant"
    assert claim.max_epsilon == config.privacy.max_epsilon


# --- names that pages mention


def mentioned(pattern: str) -> Iterator[tuple[str, str]]:
    extra = (ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md")
    for page in (*PAGES.values(), *extra):
        if page.name != "errors.md":
            text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
            for found in re.findall(pattern, text):
                yield page.name, found


def resolves(dotted: str) -> bool:
    """Return whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


@pytest.mark.needs("torch")
def test_each_dotted_name_of_the_pages_exists() -> None:
    names = set(mentioned(r"`(dpaudit(?:\.\w+)+)`"))
    found = {(page, name) for page, name in names if not name.endswith(".toml")}
    assert len(found) >= 3
    assert [one for one in sorted(found) if not resolves(one[1])] == []


def test_each_path_of_the_pages_exists() -> None:
    found = set(mentioned(r"`((?:dpaudit|tests|tools|docs|examples|benchmarks)/[\w./-]+)`"))
    assert len(found) > 20
    missing = {path for _, path in found if not (ROOT / path).exists()}
    assert not missing


@pytest.mark.needs("grimp")
def test_packages_import_only_what_the_architecture_page_allows() -> None:
    import grimp

    page = (ROOT / "docs" / "architecture.md").read_text()
    _, _, table = page.partition("| Package | Subject | May import |")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", table.partition("\n\n")[0], re.MULTILINE)
    allowed: dict[str, set[str]] = {}
    for package, imports in rows:
        every = imports == "all of the above"
        allowed[package] = set(allowed) if every else set(imports.split(", ")) - {"none"}
    graph = grimp.build_graph("dpaudit")
    for module in graph.modules:
        package, _, _ = module.removeprefix("dpaudit.").partition(".")
        for imported in graph.find_modules_directly_imported_by(module):
            other, _, _ = imported.removeprefix("dpaudit.").partition(".")
            if module not in {"dpaudit", "dpaudit.__main__"} and imported != "dpaudit":
                assert other == package or other in allowed[package], (module, imported)


# --- the README, and the site


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_each_link_of_the_readme_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)", README.read_text())
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).is_file(), link


def test_the_two_commands_of_the_readme_are_scripts_and_ci_runs_them() -> None:
    for name in re.findall(r"^    \./(\w+) ", README.read_text(), re.MULTILINE):
        assert (ROOT / name).is_file()
    assert "./check" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.needs("mkdocs")
@pytest.mark.needs("torch")
def test_the_reference_has_every_public_name_and_command() -> None:
    import docs_hook

    reference = {
        page.stem: docs_hook.on_page_markdown(page.read_text())
        for page in (ROOT / "docs" / "reference").glob("*.md")
    }
    defined_in = import_module("dpaudit.trainer").make_private.__module__
    assert f"::: {defined_in}.make_private" in reference["trainer"]
    for package in ("dpaudit.trainer", "dpaudit.accountants", "dpaudit.accountants.risk"):
        names = docs_hook.public_names(package)
        assert len(names) > 5
        page = reference["trainer" if package.endswith("trainer") else "accountants"]
        for name in names:
            assert f"[](){{#{package}.{name}}}" in page
    for name in cli.commands:
        assert f"## `dpaudit {name}`" in reference["command_line"]


@pytest.mark.needs("mkdocs")
@pytest.mark.parametrize(
    ("element", "accepted"),
    [
        ('<script src="https://example.com/a.js"></script>', False),
        ('<link rel="stylesheet" href="https://example.com/a.css">', False),
        ("<img alt='' src=http://example.com/a.png>", False),
        ('<script src="assets/a.js"></script>', True),
        ('<a href="https://example.com/">a link</a>', True),
    ],
)
def test_a_page_that_loads_from_a_network_is_rejected(
    tmp_path: Path, element: str, accepted: bool
) -> None:
    import docs_hook
    from mkdocs.exceptions import PluginError

    (tmp_path / "page.html").write_text(f"<html><body>{element}</body></html>")
    if accepted:
        docs_hook.on_post_build(config={"site_dir": str(tmp_path)})
    else:
        with pytest.raises(PluginError, match=r"page\.html loads from a network"):
            docs_hook.on_post_build(config={"site_dir": str(tmp_path)})
