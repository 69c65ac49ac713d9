"""A Python that has imported libraries already, and forks a child for each program of a test.

Imports are most of the time of a short program. Where a test is about what a program does, and
not about how it starts, a child saves them. On other systems than Linux, a new Python is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from places import ROOT

CAN_FORK = sys.platform == "linux"
LONGEST_MESSAGE = 2**20

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    program = {{"code": {code!r}, "arguments": sys.argv, "folder": os.getcwd(),
               "environment": dict(os.environ)}}
    socket.send_fds(connection, [json.dumps(program).encode()], [0, 1, 2])
    sys.exit(int(connection.recv(16)))
"""


class WarmPython:
    """Runs programs in children of one process.

    Args:
        address: Path of the process's socket; None where each program has a Python of its own.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    def run(
        self,
        code: str,
        folder: Path,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as ``python -c code arguments`` runs it, in a folder."""
        environment = os.environ if environment is None else environment
        if self._address is None:
            return subprocess.run(
                [sys.executable, "-c", code, *arguments],
                cwd=folder, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
        program = {
            "code": code,
            "arguments": ["-c", *arguments],
            "folder": str(folder),
            "environment": dict(environment),
        }
        with (
            socket.socket(socket.AF_UNIX) as connection,
            Path(os.devnull).open() as source,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            connection.connect(self._address)
            streams = [source.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(connection, [json.dumps(program).encode()], streams)
            code_left = int(connection.recv(16))
            printed = []
            for file in (out, err):
                file.seek(0)
                printed.append(file.read().decode())
        return subprocess.CompletedProcess(program["arguments"], code_left, *printed)

    def write_program(self, path: Path, code: str) -> None:
        """Write an executable that runs ``code``; nothing where each program has its own Python."""
        if self._address is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(CLIENT.format(python=sys.executable, address=self._address, code=code))
            path.chmod(0o755)


@contextlib.contextmanager
def warm_python(*libraries: str) -> Iterator[WarmPython]:
    """Start the process, with the libraries that are installed, for the time of the block."""
    if not CAN_FORK:
        yield WarmPython(None)
        return
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder, "socket"))
        command = [sys.executable, __file__, address, *libraries]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield WarmPython(address)
            finally:
                process.terminate()


# --- the process


def serve(address: str, libraries: Sequence[str]) -> None:
    """Fork a child for each program that arrives, one after the other."""
    sys.path[0] = str(ROOT)  # in place of this file's folder
    for library in libraries:
        with contextlib.suppress(ImportError):
            import_module(library)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                message, streams, _, _ = socket.recv_fds(connection, LONGEST_MESSAGE, 3)
                child = os.fork()
                if child == 0:
                    os._exit(result_of(json.loads(message), streams))
                for stream in streams:
                    os.close(stream)
                _, status = os.waitpid(child, 0)
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def result_of(program: dict[str, Any], streams: Sequence[int]) -> int:
    """Run a program in this process; return its exit code."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (open to the end of this process)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(program["environment"])
    os.chdir(program["folder"])
    sys.argv[:] = program["arguments"]
    code = 0
    try:
        exec(compile(program["code"], "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    for file in (sys.stdout, sys.stderr):
        file.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
