"""The process in which another's model runs; ``limited_process`` starts it as a script.

It imports nothing of dpaudit. All that torch or onnxruntime needs is imported (torch is run once
on a model made here) before the limits are set; the model's file is read after that. From then
on the process cannot open a file, a socket or a pipe (RLIMIT_NOFILE is 0), write to a regular
file (RLIMIT_FSIZE is 0), start a process, or use more memory or processor time than it was given.
Where Linux allows it, it has no network, and cannot remove, rename or truncate a file (Landlock),
nor change attributes of files, other processes or shared memory (seccomp).

Protocol, on standard input and output: first a byte of bits that say what could not be limited,
then R once the model is loaded, and how many records it takes at once (0: any number). P and an
array asks for the outputs, V and two arrays for a gradient; A and an array answers. E, a length
and a text says why not.
"""

# ruff: noqa: PLC0415  what is imported waits until the process has left its user's namespace

from __future__ import annotations

import ctypes
import io
import math
import os
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, BinaryIO

Array = Any  # numpy is imported later

NO_NETWORK, NO_LANDLOCK, NO_MEMORY, NO_FILES, NO_SECCOMP = 1, 2, 4, 8, 16
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, SIGKILL = 1, 38, 9
CREATE_RULESET, RESTRICT_SELF, VERSION = 444, 446, 1
# Every access right of Landlock, by its version: what torch needs is loaded by then.
RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
NETWORK_FROM, SCOPES_FROM = 4, 6


@dataclass(frozen=True)
class Calls:
    """Numbers of one machine: its audit number, seccomp, and calls that are restricted."""

    audit: int
    seccomp: int
    clone: int
    tgkill: int
    prlimit64: int
    prctl: int
    schedulers: tuple[int, ...]
    refused: tuple[int, ...]


# pidfd_send_signal, io_uring_setup, pidfd_open, pidfd_getfd, process_madvise, memfd_secret,
# process_mrelease, fchmodat2, setxattrat, removexattrat, file_setattr.
COMMON_CALLS = (424, 425, 434, 438, 440, 447, 448, 452, 463, 466, 469)
# Calls of names of files are here as well: Landlock does not bind threads that run already.
CALLS = {
    "x86_64": Calls(
        0xC000003E, 317, 56, 234, 302, 157, (203, 144, 142, 314),
        (
            *(57, 58, 59, 322, 109, 112),  # fork, vfork, execve, execveat, setpgid, setsid
            *(62, 200, 129, 297, 101, 310, 311, 312),  # kill ... ptrace, process_vm_*, kcmp
            *(141, 251, 256, 279, 160),  # setpriority, ioprio_set, *_pages, setrlimit
            *(29, 30, 31, 64, 68, 240, 319),  # shmget ..., semget, msgget, mq_open, memfd_create
            *(90, 91, 268, 92, 93, 94, 260),  # chmod ..., chown ...
            *(188, 189, 190, 197, 198, 199),  # setxattr ..., removexattr ...
            *(132, 235, 261, 280),  # utime ...
            *(87, 263, 84, 82, 264, 316, 76, 77),  # unlink ..., rename ..., truncate ...
            *(83, 258, 86, 265, 88, 266, 133, 259),  # mkdir ..., link ..., symlink ..., mknod ...
            *(272, 308, 165, 166, 155, 161),  # unshare, setns, mount ..., chroot
            *(321, 298, 323, 248, 249, 250),  # bpf, perf_event_open, userfaultfd, keys
        ),
    ),
    "aarch64": Calls(
        0xC00000B7, 277, 220, 131, 261, 167, (122, 119, 118, 274),
        (
            *(221, 281, 154, 157),
            *(129, 130, 138, 240, 117, 270, 271, 272),
            *(140, 30, 238, 239, 164),
            *(194, 196, 195, 190, 186, 180, 279),
            *(52, 53, 54, 55),
            *(5, 6, 7, 14, 15, 16),
            88,
            *(35, 38, 276, 45, 46),
            *(34, 37, 36, 33),
            *(97, 268, 40, 39, 41, 51),
            *(280, 241, 282, 217, 218, 219),
        ),
    ),
}  # fmt: skip
CLONE3, CLONE_THREAD, X32 = 435, 0x10000, 0x40000000
LOAD, EQUAL, GREATER, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026  # EPERM, ENOSYS
NUMBER, MACHINE, FIRST, THIRD, THIRD_HIGH = 0, 4, 16, 32, 36  # offsets in struct seccomp_data
Instruction = tuple[int, int, int, int]
ROWS, LONGEST_MESSAGE = "rows", 4000
ONNX_FLOATS = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2"}


@dataclass(frozen=True)
class Served:
    """A model that was loaded.

    Attributes:
        rows: How many records it takes at once; 0 for any number.
        outputs: From features to the first output of shape (records, classes).
        gradient: From features and weights of the outputs to the gradient by the features.
    """

    rows: int
    outputs: Callable[[Array], Array]
    gradient: Callable[[Array, Array], Array]


def isolate() -> bool:
    """Leave the user's namespaces, before there are threads; return whether that worked."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        least = CLONE_NEWUSER | CLONE_NEWNET
        return any(libc.unshare(flags) == 0 for flags in (least | CLONE_NEWIPC, least))
    except (AttributeError, OSError, TypeError):  # not Linux
        return False


def forbid_files() -> bool:
    """Forbid files by Landlock, whatever their descriptors; return whether the kernel knows it."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        version = libc.syscall(CREATE_RULESET, None, 0, VERSION)
        if version < 1:
            return False
        files = RIGHTS[max(known for known in RIGHTS if known <= version)]
        words = [files, 3 if version >= NETWORK_FROM else 0, 3 if version >= SCOPES_FROM else 0]
        size = 8 * (3 if version >= SCOPES_FROM else 2 if version >= NETWORK_FROM else 1)
        rules = (ctypes.c_uint64 * 3)(*words)
        handle = libc.syscall(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0)
        if handle < 0 or libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        done = bool(libc.syscall(RESTRICT_SELF, handle, 0) == 0)
        os.close(handle)
        return done
    except (AttributeError, OSError, TypeError):
        return False


def allowed_if(call: int, *conditions: tuple[int, int, int]) -> list[Instruction]:
    """Return instructions that refuse a call unless all hold: (offset, comparison, value)."""
    count = len(conditions)
    found = [(EQUAL, 0, 2 * count + 2, call)]
    for place, (offset, comparison, value) in enumerate(conditions):
        found += [(LOAD, 0, 0, offset), (comparison, 0, 2 * (count - place) - 1, value)]
    return [*found, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]


def call_filter(machine: str, process: int) -> list[Instruction]:
    """Return the filter of system calls: no other process, no attribute or name of a file."""
    some = CALLS[machine]
    found = [
        *((LOAD, 0, 0, MACHINE), (EQUAL, 1, 0, some.audit), (RETURN, 0, 0, REFUSE)),
        *((LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, X32), (RETURN, 0, 0, REFUSE)),
        # clone3 has its flags in memory, out of reach: the C library then takes clone.
        *((EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, UNKNOWN)),
    ]
    for call in (*some.refused, *COMMON_CALLS):
        found += [(EQUAL, 0, 1, call), (RETURN, 0, 0, REFUSE)]
    own_limits = [(FIRST, EQUAL, 0), (THIRD, EQUAL, 0), (THIRD_HIGH, EQUAL, 0)]  # reads them
    found += allowed_if(some.clone, (FIRST, ANY_BIT, CLONE_THREAD))
    found += allowed_if(some.tgkill, (FIRST, EQUAL, process))
    found += allowed_if(some.prlimit64, *own_limits)
    found += allowed_if(some.prctl, (FIRST, GREATER, PR_SET_PDEATHSIG))
    for call in some.schedulers:
        found += allowed_if(call, (FIRST, EQUAL, 0))
    return [*found, (RETURN, 0, 0, ALLOW)]


def forbid_calls() -> bool:
    """Filter the system calls of all threads; return whether the kernel does so."""
    machine = os.uname().machine
    if machine not in CALLS or sys.platform != "linux" or sys.maxsize < 1 << 32:
        return False
    instructions = call_filter(machine, os.getpid())
    packed = b"".join(struct.pack("<HBBI", *one) for one in instructions)
    kept = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(kept))
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        set_filter, all_threads = 1, 1
        return bool(libc.syscall(CALLS[machine].seccomp, set_filter, all_threads, program) == 0)
    except (AttributeError, OSError, TypeError):
        return False


def limit(cpu_seconds: int, memory: int, taken: int | None) -> int:
    """Set the limits that every system has; return the bits of those that failed."""
    failed = 0
    if taken is None:
        failed |= NO_MEMORY
    else:
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory,) * 2)
    used = int(sum(os.times()[:2])) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + cpu_seconds,) * 2)
    for name in ("RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NPROC"):
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    try:
        os.close(os.dup(0))
    except OSError:
        return failed
    return failed | NO_FILES


def address_space() -> int | None:
    """Return how many bytes the process has mapped; None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def loader(kind: str) -> Callable[[bytes], Served]:
    """Return what reads a model from bytes; everything that it imports is imported now."""
    return onnx_loader() if kind == "onnx" else torch_loader(kind == "script")


def torch_loader(script: bool) -> Callable[[bytes], Served]:
    """Return what reads a program of torch."""
    import torch

    torch.mm(torch.ones(512, 512), torch.ones(512, 512))  # its threads start
    net = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 2), torch.nn.Flatten(), torch.nn.Linear(6, 2))
    net.eval()
    example, saved = torch.zeros(2, 1, 4), io.BytesIO()
    if script:
        traced = torch.jit.trace(net, example)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, saved)
    else:
        sizes = ({0: torch.export.Dim(ROWS)},)
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=sizes), saved)

    def load(content: bytes) -> Served:
        if script:
            program = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(content), map_location="cpu"
            ).eval()
        else:
            program = torch.export.load(io.BytesIO(content)).module()
        return Served(0, partial(outputs, program), partial(gradient, program))

    made, pipe = load(saved.getvalue()), io.BytesIO()
    write_array(pipe, example.numpy())
    pipe.seek(0)
    read_array(pipe)
    for _ in range(3):  # TorchScript compiles at its second run
        made.outputs(example.numpy())
        made.gradient(example.numpy(), made.outputs(example.numpy()))
    return load


def onnx_loader() -> Callable[[bytes], Served]:
    """Return what reads an ONNX model; weights in further files are not read."""
    onnxruntime = import_module("onnxruntime")  # it has no types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # no thread can start now
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 4

    def load(content: bytes) -> Served:
        try:
            # By its content: by its name, it could have further files read.
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a dozen kinds of its own
            raise ValueError(f"no ONNX model in one file: {error}") from error
        return Served(onnx_rows(session), partial(onnx_outputs, session), no_gradient)

    return load


def onnx_rows(session: Any) -> int:
    """Return how many records an ONNX model takes at once; 0 for any number."""
    inputs = [(one.name, one.type, one.shape) for one in session.get_inputs()]
    if len(inputs) != 1 or inputs[0][1] not in ONNX_FLOATS or not inputs[0][2]:
        raise ValueError(f"not one input of floats, (records, ...), but {inputs}")
    rows = inputs[0][2][0]
    if not isinstance(rows, int):
        return 0
    if not 0 < rows < 1 << 32:
        raise ValueError(f"an input of {rows} records")
    return rows


def onnx_outputs(session: Any, features: Array) -> Array:
    """Return the first output of floats of shape (records, classes)."""
    import numpy as np

    (given,) = session.get_inputs()
    at_once = onnx_rows(session) or len(features)
    batches = np.split(features.astype(ONNX_FLOATS[given.type]), len(features) // at_once)
    runs = [session.run(None, {given.name: batch}) for batch in batches]
    for place, output in enumerate(runs[0]):
        if isinstance(output, np.ndarray) and output.ndim == 2 and output.dtype.kind == "f":
            found = np.concatenate([run[place] for run in runs])
            if len(found) == len(features):
                return found if found.dtype == np.float64 else found.astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    raise ValueError(f"no output of shape (records, classes) among {names}")


def no_gradient(features: Array, outside: Array) -> Array:
    """Refuse: onnxruntime does not differentiate."""
    raise ValueError("an ONNX model gives no gradient")


def outputs(program: Any, features: Array) -> Array:
    """Return the first output of shape (records, classes)."""
    import torch

    with torch.no_grad():
        found: Array = _logits(program(torch.from_numpy(features)), len(features)).numpy()
        return found


def gradient(program: Any, features: Array, outside: Array) -> Array:
    """Return the gradient by the features of the product of outputs and ``outside``."""
    import torch

    moved = torch.from_numpy(features).requires_grad_(True)
    product = (_logits(program(moved), len(features)) * torch.from_numpy(outside)).sum()
    (found,) = torch.autograd.grad(product, [moved])
    return found.numpy()


def _logits(found: Any, rows: int) -> Any:
    import torch

    several = found.values() if isinstance(found, dict) else found
    several = [found] if isinstance(found, torch.Tensor) else several
    if isinstance(several, str) or not hasattr(several, "__iter__"):
        raise ValueError(f"it returns {type(found).__name__}, no tensor")
    tensors = [one for one in several if isinstance(one, torch.Tensor)]
    for one in tensors:
        if one.ndim == 2 and len(one) == rows and not one.is_complex():
            return one if one.dtype == torch.float64 else one.float()
    shapes = [tuple(one.shape) for one in tensors]
    raise ValueError(f"no output of shape (records, classes) among {shapes}")


def read_array(file: BinaryIO) -> Array:
    """Read an array of float32."""
    import numpy as np

    width, count = file.read(2)
    shape = struct.unpack(f"<{count}Q", file.read(8 * count))
    content = bytearray(file.read(math.prod(shape) * width))
    return np.frombuffer(content, dtype=np.float32).reshape(shape)


def write_array(file: BinaryIO, array: Array) -> None:
    """Write an array of float32 or float64: bytes of a number, sides, each side, the numbers."""
    import numpy as np

    whole = np.ascontiguousarray(array)
    file.write(struct.pack(f"<BB{whole.ndim}Q", whole.itemsize, whole.ndim, *whole.shape))
    file.write(whole.tobytes())


def serve(model: Served, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the parent is gone."""
    while what := requests.read(1):
        given = [read_array(requests) for _ in range(2 if what == b"V" else 1)]
        try:
            found = model.gradient(*given) if what == b"V" else model.outputs(*given)
        except Exception as error:
            refuse(answers, error)
            return
        answers.write(b"A")
        write_array(answers, found)
        answers.flush()


def refuse(answers: BinaryIO, error: Exception) -> None:
    """Say why there is no answer."""
    text = f"{type(error).__name__}: {error}".encode(errors="replace")[:LONGEST_MESSAGE]
    answers.write(b"E" + struct.pack("<I", len(text)) + text)
    answers.flush()


def main(kind: str, handle: str, cpu_seconds: str, memory: str, *places: str) -> None:
    """Load the model and answer."""
    # What the program prints must not get among the answers.
    requests, answers = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    unlimited = 0 if isolate() else NO_NETWORK
    sys.path += [place for place in places if place not in sys.path]
    load = loader(kind)
    with os.fdopen(int(handle), "rb") as file:
        content = file.read()
    taken = address_space()
    unlimited |= 0 if forbid_files() else NO_LANDLOCK
    unlimited |= limit(int(cpu_seconds), int(memory) + 2 * len(content), taken)
    unlimited |= 0 if forbid_calls() else NO_SECCOMP
    if not unlimited & NO_FILES:
        unlimited &= ~NO_NETWORK  # a socket is a file that cannot be opened
    answers.write(bytes([unlimited]))
    answers.flush()
    try:
        model = load(content)
    except Exception as error:
        refuse(answers, error)
        return
    del content
    answers.write(b"R" + struct.pack("<I", model.rows))
    answers.flush()
    serve(model, requests, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
