"""Programs of torch: refused unless they are trusted, and then run in a process with limits."""

from __future__ import annotations

import base64
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit.attacks.membership.output_signals import logits_from_outputs
from dpaudit.attacks.membership.target_models.model_files import open_model
from dpaudit.attacks.membership.target_models.sandbox import (
    ProcessLimits,
    _Pipes,
    _read_array,
    _read_exactly,
)
from dpaudit.attacks.membership.target_models.sandbox_child import (
    ALLOW,
    ANY_BIT,
    AT_LEAST,
    CLONE_THREAD,
    COMMON_REFUSED_CALLS,
    EQUAL,
    GREATER,
    LOAD,
    REFUSE,
    RETURN,
    SYSTEM_CALLS,
    call_filter,
)
from dpaudit.attacks.membership.target_models.torch_program import TorchProgram
from dpaudit.files.regular_files import GIB, InputFile
from dpaudit.vocabulary.errors import InvalidArgument

FEATURES = np.random.default_rng(0).standard_normal((2050, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).eval()


def write_script(net: nn.Module, path: Path) -> Path:
    torch.jit.script(net).save(str(path))
    return path


def write_export(net: nn.Module, path: Path) -> Path:
    records = ({0: torch.export.Dim("records")},)
    program = torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=records)
    torch.export.save(program, path.with_suffix(".pt2"))
    return path.with_suffix(".pt2").rename(path)


WRITERS = pytest.mark.parametrize("write", [write_script, write_export])
Write = Callable[[nn.Module, Path], Path]


@WRITERS
@pytest.mark.parametrize("name", ["net.pt", "net.pt2", "net.safetensors", "net.onnx", "net"])
def test_program_is_refused_under_any_name(
    tmp_path: Path, net: nn.Module, write: Write, name: str
) -> None:
    path = write(net, tmp_path / name)
    with pytest.raises(InvalidArgument, match=r"which runs code: .*--trust-model-code"):
        open_model(path, factory="nets:make", shape=(4,), classes=3)


@WRITERS
def test_trusted_program_returns_the_outputs_of_its_module(
    tmp_path: Path, net: nn.Module, write: Write
) -> None:
    path = write(net, tmp_path / "net")
    model = open_model(path, factory=None, shape=(4,), classes=3, trust_model_code=True)
    assert isinstance(model, TorchProgram)
    with torch.no_grad():
        expected = net(torch.from_numpy(FEATURES)).numpy()
    assert model.predict(FEATURES) == pytest.approx(expected, abs=1e-5)
    gradients = [gradient(call, FEATURES[:7]) for call in (model.call, net)]
    torch.testing.assert_close(*gradients)
    with pytest.raises(InvalidArgument, match="runs within its limits"):
        model.predict(FEATURES[:, :3])


def gradient(call: Callable[[Tensor], Tensor], features: np.ndarray) -> Tensor:
    moved = torch.from_numpy(features).requires_grad_(True)
    return torch.autograd.grad(call(moved).square().sum(), [moved])[0]


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(), x[:, :2]


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Endless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while bool((x < 1e30).all()):
            x = x * 1.0
        return x


class Hungry(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(1 << 34)[:2].expand(len(x), 2)


class Writing(nn.Module):
    def __init__(self, path: str, other: str) -> None:
        super().__init__()
        self.path, self.other = path, other

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.path)
        torch.save(x, self.other)
        return x


def started(path: Path, *, script: bool, limits: ProcessLimits | None = None) -> TorchProgram:
    return TorchProgram(
        InputFile(path, "checkpoint", GIB), script, limits or ProcessLimits(seconds=120)
    )


def test_of_several_outputs_the_one_of_a_row_a_record_counts(tmp_path: Path) -> None:
    """The process ends with the program."""
    model = started(write_script(Tuple(), tmp_path / "net"), script=True)
    assert model.predict(FEATURES[:5]) == pytest.approx(FEATURES[:5, :2])
    process, folder = model._process.process, Path(model._process.folder)
    assert process.poll() is None
    del model
    assert process.poll() is not None
    assert not folder.exists()


@pytest.mark.parametrize("module", [Flat(), Hungry()])
def test_what_has_no_such_output_or_takes_too_much_memory_is_refused(
    tmp_path: Path, module: nn.Module
) -> None:
    model = started(write_script(module, tmp_path / "net"), script=True)
    with pytest.raises(InvalidArgument, match="runs within its limits"):
        model.predict(FEATURES[:5])


def test_an_endless_program_is_ended(tmp_path: Path) -> None:
    path = write_script(Endless(), tmp_path / "net")
    model = started(path, script=True, limits=ProcessLimits(seconds=60, cpu_seconds=2, memory=GIB))
    with pytest.raises(InvalidArgument, match="it ended before it was run"):
        model.predict(FEATURES[:5])
    late = started(path, script=True, limits=ProcessLimits(seconds=60, cpu_seconds=60, memory=GIB))
    late._process.limits = ProcessLimits(seconds=0.5)
    with pytest.raises(InvalidArgument, match=r"over 0\.5 s"):
        late.predict(FEATURES[:5])


@pytest.mark.parametrize("new_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_script_writes_and_truncates_no_file(tmp_path: Path, *, new_first: bool) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"precious")
    first, second = (new, old) if new_first else (old, new)
    model = started(write_script(Writing(str(first), str(second)), tmp_path / "net"), script=True)
    with suppress(InvalidArgument):  # torch may not notice that nothing was written
        model.predict(FEATURES[:5])
    assert not new.exists()
    assert old.read_bytes() == b"precious"


def tampered(net: nn.Module, path: Path, expression: str) -> Path:
    """Write a program of torch.export with ``expression`` in place of its first symbol."""
    plain = write_export(net, path.with_name("plain"))
    changed = 0
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("model.json") and (symbol := content.find(b"Symbol('")) >= 0:
                end = content.find(b")", symbol) + 1
                content = content.replace(content[symbol:end], expression.encode())
                changed += 1
            new.writestr(name, content)
    assert changed
    return path


OUT_OF_REACH = [
    "os.truncate(TARGET, 0)",
    "os.rename(TARGET, TARGET + '.gone')",
    "open(TARGET, 'w').write('x')",
    "socket.create_server(('127.0.0.1', 0))",
    "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "os.sched_setaffinity(os.getppid(), {0})",
    "os.sched_setscheduler(os.getppid(), os.SCHED_BATCH, os.sched_param(0))",
    "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (10**6, 10**6))",
    "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
    "os.fork()",
    "os.chmod(TARGET, 0o777)",
    "os.utime(TARGET, (0, 0))",
    "os.setxattr(TARGET, 'user.x', b'1')",
    "os.kill(os.getppid(), 9)",
    "c(libc.shmget(77123, 4096, 0o1600))",
    "c(libc.prctl(1, 0, 0, 0, 0))",
]
TRY_ALL = """
import ctypes, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
def c(found):
    if found < 0: raise OSError(ctypes.get_errno(), "refused")
found = {}
for statement in STATEMENTS:
    try: exec(statement, globals())
    except (OSError, ValueError) as error: found[statement] = str(error)
    except BaseException as error: found[statement] = "OTHER " + repr(error)
    else: found[statement] = "REACHED"
raise ValueError("each: " + repr(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is of Linux")
def test_other_processes_and_attributes_of_files_are_out_of_reach(
    tmp_path: Path, net: nn.Module
) -> None:
    """One program tries everything, and says what each attempt gave."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    before = target.stat().st_mode, target.stat().st_mtime_ns
    statements = [one.replace("TARGET", repr(str(target))) for one in OUT_OF_REACH]
    code = TRY_ALL.replace("STATEMENTS", repr(statements))
    hidden = base64.b64encode(code.encode()).decode()
    path = tampered(
        net, tmp_path / "bad", f"exec(__import__('base64').b64decode('{hidden}'), {{}})"
    )
    with pytest.raises(InvalidArgument, match="each: ") as refused:
        started(path, script=False)
    said = str(refused.value)
    assert [one for one in statements if repr(one) not in said] == []
    assert "REACHED" not in said, said
    assert "OTHER" not in said, said
    assert target.read_bytes() == b"precious"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad", "plain", "target"]
    assert (target.stat().st_mode, target.stat().st_mtime_ns) == before


@pytest.mark.parametrize("machine", sorted(SYSTEM_CALLS))
def test_every_branch_of_the_filter_ends_at_a_decision(machine: str) -> None:
    instructions = call_filter(machine, 4711)
    assert len(instructions) < 4096
    calls = SYSTEM_CALLS[machine]

    def decided(call: int, *arguments: int, audit: int = calls.audit) -> int:
        data = struct.pack("<iIQ6Q", call, audit, 0, *(*arguments, *[0] * 6)[:6])
        place, held = 0, 0
        while True:
            code, yes, no, value = instructions[place]
            place += 1
            if code == RETURN:
                return value
            if code == LOAD:
                (held,) = struct.unpack_from("<I", data, value)
                continue
            holds = {
                EQUAL: held == value,
                GREATER: held > value,
                AT_LEAST: held >= value,
                ANY_BIT: bool(held & value),
            }[code]
            place += yes if holds else no

    for call in (*calls.refused, *COMMON_REFUSED_CALLS):
        assert decided(call) == REFUSE
    assert decided(0 if machine == "x86_64" else 63) == ALLOW  # read
    assert decided(0, audit=0x40000003) == REFUSE
    assert decided(calls.clone, CLONE_THREAD | 0x100) == ALLOW
    assert decided(calls.clone, 17) == REFUSE
    assert [decided(calls.tgkill, number) for number in (4711, 1)] == [ALLOW, REFUSE]
    assert decided(calls.prlimit64, 0, 7, 0) == ALLOW
    for arguments in ((1, 7, 0), (0, 7, 1), (0, 7, 1 << 32)):
        assert decided(calls.prlimit64, *arguments) == REFUSE
    assert [decided(calls.prctl, option) for option in (1, 15)] == [REFUSE, ALLOW]
    assert [decided(calls.schedulers[0], number) for number in (0, 1)] == [ALLOW, REFUSE]


FORKS = "__import__('os').fork()"
SLEEPS = "__import__('time').sleep(1000)"
HOLDERS = [
    f"({FORKS} and __import__('os')._exit(0)) or {SLEEPS}",
    f"{FORKS} and {SLEEPS} or {SLEEPS}",
]


# Where the filter of system calls refuses a fork, both holders end alike.
@pytest.mark.parametrize(
    "expression", [HOLDERS[0], pytest.param(HOLDERS[1], marks=pytest.mark.slow), SLEEPS]
)
def test_a_program_that_leaves_a_holder_of_its_pipes_is_given_up(
    tmp_path: Path, net: nn.Module, expression: str
) -> None:
    path = tampered(net, tmp_path / "bad", expression)
    with pytest.raises(InvalidArgument, match="runs within its limits"):
        started(path, script=False, limits=ProcessLimits(seconds=15))


@pytest.mark.parametrize("command", ["sleep 60 &", "(setsid sleep 60 &)", "sleep 60"])
def test_no_read_or_write_waits_for_a_process_that_holds_the_pipes(command: str) -> None:
    with subprocess.Popen(
        ["sh", "-c", f"{command} <&0"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
    ) as process:  # fmt: skip
        with pytest.raises(TimeoutError):
            _read_exactly(_Pipes(process, time.monotonic() + 0.5), 1)
        with pytest.raises((TimeoutError, BrokenPipeError)):
            _Pipes(process, time.monotonic() + 0.5).write(bytes(1 << 20))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("<BB2Q", 4, 2, 0, 10**18),
        struct.pack("<BB2Q", 4, 2, 2**63, 2),
        struct.pack("<BB2Q", 8, 2, 1 << 28, 1),
        struct.pack("<BB", 2, 2),
        struct.pack("<BB", 4, 255),
        struct.pack("<BB2Q", 4, 2, 5, 0),
        struct.pack("<BB1Qf", 4, 1, 1, 1.0),
        struct.pack("<BB", 4, 2),
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'shape': ((",
    ],
)
def test_a_forged_answer_is_refused(answer: bytes) -> None:
    receiving, sending = os.pipe()
    os.write(sending, answer)
    os.close(sending)
    with os.fdopen(receiving, "rb") as stdout, open(os.devnull, "wb") as stdin:
        process = SimpleNamespace(stdin=stdin, stdout=stdout)
        pipes = _Pipes(process, time.monotonic() + 60)  # type: ignore[arg-type]
        with pytest.raises((ValueError, EOFError)):
            logits_from_outputs(_read_array(pipes))


def test_a_broken_program_is_refused(tmp_path: Path, net: nn.Module) -> None:
    whole = write_script(net, tmp_path / "net").read_bytes()
    broken = tmp_path / "broken"
    broken.write_bytes(whole[: len(whole) // 2] + whole[-200:])
    with pytest.raises(InvalidArgument, match="checkpoint must be"):
        open_model(broken, factory=None, shape=(4,), classes=3, trust_model_code=True)
