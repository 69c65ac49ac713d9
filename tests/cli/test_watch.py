"""dpaudit watch: what a person sees of a run while it trains."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from calling import Call
from places import ROOT
from rich.console import Console

from dpaudit.report import live_screen
from dpaudit.report.run_status import EpsilonLimit, MeasuredAccuracy, RunStage, RunStatus

NAMES = (
    *("run", "steps", "epsilon spent", "epsilon left", "epsilon at the end"),
    *("rate", "ends", "held-out accuracy"),
)

MADE_AT_THE_END = ("model.safetensors", "observations.npz", "claim.json")


@pytest.fixture
def unfinished(run_copy: Path) -> Path:
    """The run as it was before its seal."""
    ledger = run_copy / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    for made_at_the_end in MADE_AT_THE_END:
        (run_copy / made_at_the_end).unlink()
    return run_copy


def claimed(run: Path) -> float:
    return float(json.loads((run / "claim.json").read_text())["epsilon"]["upper"])


def test_a_finished_run_is_shown_once_with_its_claim(call: Call, trained: Path) -> None:
    result = call("watch", trained)
    assert result.code == 0
    assert result.out.count("\n") == 1
    assert "small, finished; steps 30 of 30; " in result.out
    assert f"epsilon at the end upper bound {claimed(trained):.3f}"[:-1] in result.out
    # Of a secure run, whose noise is fresh: the figure is that of this run.
    assert re.search(r"held-out accuracy \d+\.\d% after step 30", result.out)


def test_one_look_at_an_unfinished_run_names_everything(call: Call, unfinished: Path) -> None:
    result = call("watch", unfinished, "--once")
    assert (result.code, result.err) == (0, "")
    rows = result.out.splitlines()
    assert [row[:18].rstrip() for row in rows] == list(NAMES)
    assert "training" in rows[0]
    assert rows[1].endswith("30 of 30")
    assert rows[-1].endswith("not measured yet")


def test_a_torn_last_line_is_no_error(call: Call, unfinished: Path) -> None:
    ledger = unfinished / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    while b'"kind":"release"' not in lines[-1]:
        lines.pop()
    ledger.write_bytes(b"".join(lines)[:-25])
    result = call("watch", unfinished, "--once")
    assert (result.code, result.err) == (0, "")
    assert "29 of 30" in result.out


def test_an_altered_line_exits_4(call: Call, unfinished: Path) -> None:
    ledger = unfinished / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace(":2.0}", ":9.0}", 1))
    result = call("watch", unfinished, "--once")
    assert result.code == 4
    assert "altered" in result.err


def test_no_run_exits_2_and_no_ledger_exits_4(call: Call, tmp_path: Path) -> None:
    assert call("watch", tmp_path / "nowhere").code == 2
    assert call("watch", tmp_path).code == 4
    assert call("watch", tmp_path, "--every", "0").code == 2


def test_a_run_that_grows_is_followed_to_its_seal(
    call: Call, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for file in run.iterdir():
        file.touch()  # it begins now, however long ago it was trained
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    for made_at_the_end in MADE_AT_THE_END:
        (run / made_at_the_end).unlink()

    def grow() -> None:
        with (run / "ledger.jsonl").open("ab", buffering=0) as ledger:
            for line in lines[3:]:
                if line is lines[-1]:
                    for made_at_the_end in MADE_AT_THE_END:
                        shutil.copy(trained / made_at_the_end, tmp_path / "new")
                        (tmp_path / "new").rename(run / made_at_the_end)
                ledger.write(line[:50])  # a reader may come at any moment
                time.sleep(0.005)
                ledger.write(line[50:])
                time.sleep(0.005)

    writer = threading.Thread(target=grow)
    writer.start()
    result = call("watch", run, "--every", "0.02")
    writer.join()
    assert (result.code, result.err) == (0, "")
    rows = result.out.splitlines()
    assert len(rows) > 3
    assert all(row.startswith("run run, training; ") for row in rows[:-1])
    assert rows[-1].startswith("run run, finished; steps 30 of 30; ")
    done = [int(row.split("steps ")[1].split()[0]) for row in rows]
    assert done == sorted(done)


def test_the_policy_of_the_working_directory_sets_the_limit(
    call: Call, unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dpaudit.toml").write_text("[claim]\nmax_epsilon = 1.0\ndelta = 1e-5\n")
    said = call("watch", unfinished, "--once").out
    assert "OVER the policy's 1" in said
    other = tmp_path / "other.toml"
    other.write_text("[claim]\nmax_epsilon = 8.0\ndelta = 1e-5\n")
    assert "of the policy's 8\n" in call("watch", unfinished, "--once", "--policy", other).out
    assert call("watch", unfinished, "--policy", tmp_path / "none.toml").code == 2


def test_an_unfinished_run_without_a_checkpoint_is_watched_without_torch(unfinished: Path) -> None:
    code = (
        f"import sys; sys.argv = ['dpaudit', 'watch', {str(unfinished)!r}, '--once']\n"
        "from dpaudit.cli.entry_point import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    print('LOADED', end.code, [m for m in ('torch', 'rich') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout.endswith("LOADED 0 []\n"), result.stderr


SEEN = RunStatus(
    run="[red]mnist[/red]",
    stage=RunStage.TRAINING,
    steps_done=50,
    steps=100,
    delta=1e-5,
    spent=1.23456,
    projected=3.5,
    limit=EpsilonLimit(3.0, "the policy's"),
    accuracy=MeasuredAccuracy(0.971, 40),
)
DONE = RunStatus(
    run="mnist", stage=RunStage.FINISHED, steps_done=100, steps=100, delta=1e-5, spent=2.0
)


def drawn(monkeypatch: pytest.MonkeyPatch, colours: bool) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = io.StringIO()
    terminal = Console(
        file=screen, force_terminal=True, color_system="standard", width=100, legacy_windows=False
    )
    live_screen.show_live(iter([SEEN, DONE]), terminal)
    return screen.getvalue()


def test_a_terminal_shows_one_picture_over_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = drawn(monkeypatch, colours=True)
    assert "[red]mnist[/red], training" in screen  # a name is no markup
    assert screen.count("━") > 50  # a bar each
    assert "upper bound 1.235 at delta 1e-05" in screen
    assert "97.1% after step 40" in screen
    first, _, last = screen.partition("mnist, finished")
    assert "\x1b[1A" in first.partition("training")[2]  # back to the top, and over it
    assert "training" not in last
    assert ";31m" in screen  # red: it will be over the limit


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = drawn(monkeypatch, colours=False)
    assert "31m" not in screen
    assert "32m" not in screen
    assert "OVER the policy's 3" in screen  # nothing is said by colour alone
