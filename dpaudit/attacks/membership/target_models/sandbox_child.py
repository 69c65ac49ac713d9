"""The process that runs an untrusted model; ``sandbox`` starts this file as a script.

It imports nothing of dpaudit. First it imports all that torch or onnxruntime needs, and runs torch
once on a model made here. Then it reads the bytes of the file, sets the limits, and loads the model
from the bytes. From then on it has these limits:

- It cannot open a file, a socket or a pipe (RLIMIT_NOFILE is 0).
- It cannot write to a regular file (RLIMIT_FSIZE is 0).
- It cannot start a process, or exceed its memory and processor time.
- Where Linux allows it, it has no network, and cannot remove, rename or truncate a file (Landlock).
- Where Linux allows it, it cannot change attributes of files, other processes or shared memory
  (seccomp).

Protocol, on standard input and output:

1. The child writes one byte: the bits of the limits that are not enforced.
2. It writes R and the number of records that the model accepts at once (0: any number).
3. The parent writes P and an array for outputs, or V and two arrays for a gradient.
4. The child writes A and an array, or E, a length and a text for an error. Then 3 again.
"""

# ruff: noqa: PLC0415  libraries start threads, so the process leaves its namespaces first

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
# All access rights by version of Landlock: each is denied, since torch is loaded by then.
LANDLOCK_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
NETWORK_FROM, SCOPES_FROM = 4, 6


@dataclass(frozen=True)
class SystemCalls:
    """Numbers of system calls on one machine architecture.

    Attributes:
        audit: AUDIT_ARCH constant of the architecture.
        seccomp: The call that installs the filter.
        clone: Allowed for threads alone.
        tgkill: Allowed for the process itself alone.
        prlimit64: Allowed for reading the process's own limits alone.
        prctl: Allowed except for PR_SET_PDEATHSIG.
        schedulers: Scheduler calls, allowed for the process itself alone.
        refused: Calls that are refused.
    """

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
COMMON_REFUSED_CALLS = (424, 425, 434, 438, 440, 447, 448, 452, 463, 466, 469)
# Calls on file names are refused here, too: Landlock does not restrict existing threads.
SYSTEM_CALLS = {
    "x86_64": SystemCalls(
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
    "aarch64": SystemCalls(
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
ROWS, MAX_MESSAGE_BYTES = "rows", 4000
ONNX_FLOATS = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2"}


@dataclass(frozen=True)
class LoadedModel:
    """A model that was loaded.

    Attributes:
        rows: Number of records that it accepts at once; 0 for any number.
        outputs: Maps features to the first output of shape ``(records, classes)``.
        gradient: Maps features and weights of the outputs to the gradient of the weighted sum
            with respect to the features.
    """

    rows: int
    outputs: Callable[[Array], Array]
    gradient: Callable[[Array, Array], Array]


def leave_namespaces() -> bool:
    """Enter new user, network and IPC namespaces; call this before there are threads.

    Returns:
        Whether at least a new network namespace could be entered.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        least = CLONE_NEWUSER | CLONE_NEWNET
        return any(libc.unshare(flags) == 0 for flags in (least | CLONE_NEWIPC, least))
    except (AttributeError, OSError, TypeError):  # not Linux
        return False


def forbid_files() -> bool:
    """Deny opening and changing files with Landlock; also network and signals if supported.

    Returns:
        Whether the kernel enforces it.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        version = libc.syscall(CREATE_RULESET, None, 0, VERSION)
        if version < 1:
            return False
        files = LANDLOCK_RIGHTS[max(known for known in LANDLOCK_RIGHTS if known <= version)]
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
    """Build the instructions that refuse a system call unless all conditions hold.

    Args:
        call: Number of the system call.
        *conditions: Offset in ``seccomp_data``, comparison and value of each condition.

    Returns:
        Instructions of a BPF program; other calls continue after them.
    """
    # A false condition jumps to the last instruction, REFUSE; another call jumps past it.
    count = len(conditions)
    found = [(EQUAL, 0, 2 * count + 2, call)]
    for place, (offset, comparison, value) in enumerate(conditions):
        found += [(LOAD, 0, 0, offset), (comparison, 0, 2 * (count - place) - 1, value)]
    return [*found, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]


def call_filter(machine: str, process: int) -> list[Instruction]:
    """Build the seccomp filter: no other process, no attribute and no name of a file.

    Args:
        machine: Architecture, a key of ``SYSTEM_CALLS``.
        process: Number of the process itself.

    Returns:
        The BPF program as (code, jump if true, jump if false, value).
    """
    some = SYSTEM_CALLS[machine]
    found = [
        *((LOAD, 0, 0, MACHINE), (EQUAL, 1, 0, some.audit), (RETURN, 0, 0, REFUSE)),
        *((LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, X32), (RETURN, 0, 0, REFUSE)),
        # The filter cannot read the flags of clone3 in memory. With ENOSYS, libc uses clone.
        *((EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, UNKNOWN)),
    ]
    for call in (*some.refused, *COMMON_REFUSED_CALLS):
        found += [(EQUAL, 0, 1, call), (RETURN, 0, 0, REFUSE)]
    own_limits = [(FIRST, EQUAL, 0), (THIRD, EQUAL, 0), (THIRD_HIGH, EQUAL, 0)]  # reads them only
    found += allowed_if(some.clone, (FIRST, ANY_BIT, CLONE_THREAD))
    found += allowed_if(some.tgkill, (FIRST, EQUAL, process))
    found += allowed_if(some.prlimit64, *own_limits)
    found += allowed_if(some.prctl, (FIRST, GREATER, PR_SET_PDEATHSIG))
    for call in some.schedulers:
        found += allowed_if(call, (FIRST, EQUAL, 0))
    return [*found, (RETURN, 0, 0, ALLOW)]


def forbid_calls() -> bool:
    """Install the filter of system calls for all threads.

    Returns:
        Whether the kernel enforces it.
    """
    machine = os.uname().machine
    if machine not in SYSTEM_CALLS or sys.platform != "linux" or sys.maxsize < 1 << 32:
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
        return bool(
            libc.syscall(SYSTEM_CALLS[machine].seccomp, set_filter, all_threads, program) == 0
        )
    except (AttributeError, OSError, TypeError):
        return False


def set_resource_limits(cpu_seconds: int, memory: int, taken: int | None) -> int:
    """Set the resource limits of POSIX.

    Args:
        cpu_seconds: Processor time from now on, in seconds.
        memory: Memory beyond ``taken``, in bytes.
        taken: Address space in use, in bytes; None if it is unknown.

    Returns:
        Bits of the limits that are not enforced.
    """
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
    """Return the mapped address space in bytes; None if the system has no /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def model_loader(kind: str) -> Callable[[bytes], LoadedModel]:
    """Return a function that loads a model from bytes, and import all that it needs.

    Args:
        kind: ``script``, ``export`` or ``onnx``.

    Returns:
        A function that imports nothing, so it works after the limits are set.
    """
    return onnx_loader() if kind == "onnx" else torch_loader(kind == "script")


def torch_loader(script: bool) -> Callable[[bytes], LoadedModel]:
    """Return a function that loads a program of torch.

    Args:
        script: True for TorchScript, False for torch.export.

    Returns:
        The function, after several runs: torch imports and compiles on first use.
    """
    import torch

    torch.mm(torch.ones(512, 512), torch.ones(512, 512))  # starts its threads
    net = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 2), torch.nn.Flatten(), torch.nn.Linear(6, 2))
    net.eval()
    example, saved = torch.zeros(2, 1, 4), io.BytesIO()
    if script:
        traced = torch.jit.trace(net, example)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, saved)
    else:
        sizes = ({0: torch.export.Dim(ROWS)},)
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=sizes), saved)

    def load(content: bytes) -> LoadedModel:
        if script:
            program = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(content), map_location="cpu"
            ).eval()
        else:
            program = torch.export.load(io.BytesIO(content)).module()
        return LoadedModel(0, partial(torch_outputs, program), partial(torch_gradient, program))

    made, pipe = load(saved.getvalue()), io.BytesIO()
    write_array(pipe, example.numpy())
    pipe.seek(0)
    read_array(pipe)
    for _ in range(3):  # TorchScript compiles in its second run
        made.outputs(example.numpy())
        made.gradient(example.numpy(), made.outputs(example.numpy()))
    return load


def onnx_loader() -> Callable[[bytes], LoadedModel]:
    """Return a function that loads an ONNX model; weights in further files are not read.

    Returns:
        A function from bytes to the model, with one thread.
    """
    onnxruntime = import_module("onnxruntime")  # it has no type hints
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # threads cannot start later
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 4

    def load(content: bytes) -> LoadedModel:
        try:
            # From bytes: a model that is loaded by path can refer to further files.
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of many types of onnxruntime
            raise ValueError(f"no ONNX model in one file: {error}") from error
        return LoadedModel(onnx_rows(session), partial(onnx_outputs, session), no_gradient)

    return load


def onnx_rows(session: Any) -> int:
    """Return how many records an ONNX model accepts at once.

    Args:
        session: An ``InferenceSession``.

    Returns:
        The fixed first dimension of its input; 0 if any number is accepted.

    Raises:
        ValueError: If it has not exactly one input, of floats.
    """
    inputs = [(one.name, one.type, one.shape) for one in session.get_inputs()]
    if len(inputs) != 1 or inputs[0][1] not in ONNX_FLOATS or not inputs[0][2]:
        raise ValueError(f"its inputs are {inputs}, not one of floats with shape (records, ...)")
    rows = inputs[0][2][0]
    if not isinstance(rows, int):
        return 0
    if not 0 < rows < 1 << 32:
        raise ValueError(f"an input of {rows} records")
    return rows


def onnx_outputs(session: Any, features: Array) -> Array:
    """Compute the first output of floats with shape ``(records, classes)``.

    Args:
        session: An ``InferenceSession``.
        features: Shape ``(records, ...)``.

    Returns:
        Float32 or float64 array.

    Raises:
        ValueError: If there is no such output.
    """
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


def no_gradient(features: Array, weights: Array) -> Array:
    """Raise an error: onnxruntime does not differentiate."""
    raise ValueError("an ONNX model has no gradient")


def torch_outputs(program: Any, features: Array) -> Array:
    """Compute the first output of shape ``(records, classes)``.

    Args:
        program: The program.
        features: Shape ``(records, ...)``, float32.

    Returns:
        Float32 or float64 array.
    """
    import torch

    with torch.no_grad():
        found: Array = _logits(program(torch.from_numpy(features)), len(features)).numpy()
        return found


def torch_gradient(program: Any, features: Array, weights: Array) -> Array:
    """Compute the gradient of a weighted sum of outputs with respect to the features.

    Args:
        program: The program.
        features: Shape ``(records, ...)``, float32.
        weights: Shape ``(records, classes)``, float32.

    Returns:
        Shape of ``features``.
    """
    import torch

    moved = torch.from_numpy(features).requires_grad_(True)
    product = (_logits(program(moved), len(features)) * torch.from_numpy(weights)).sum()
    (found,) = torch.autograd.grad(product, [moved])
    return found.numpy()


def _logits(found: Any, rows: int) -> Any:
    """Return the first tensor of shape (records, classes) among the outputs of a program."""
    import torch

    several = found.values() if isinstance(found, dict) else found
    several = [found] if isinstance(found, torch.Tensor) else several
    if isinstance(several, str) or not hasattr(several, "__iter__"):
        raise ValueError(f"it returns {type(found).__name__}, not a tensor")
    tensors = [one for one in several if isinstance(one, torch.Tensor)]
    for one in tensors:
        if one.ndim == 2 and len(one) == rows and not one.is_complex():
            return one if one.dtype == torch.float64 else one.float()
    shapes = [tuple(one.shape) for one in tensors]
    raise ValueError(f"no output of shape (records, classes) among {shapes}")


def read_array(file: BinaryIO) -> Array:
    """Read an array of float32 from the parent, which is trusted.

    Args:
        file: Standard input.

    Returns:
        The array.
    """
    import numpy as np

    width, count = file.read(2)
    shape = struct.unpack(f"<{count}Q", file.read(8 * count))
    content = bytearray(file.read(math.prod(shape) * width))
    return np.frombuffer(content, dtype=np.float32).reshape(shape)


def write_array(file: BinaryIO, array: Array) -> None:
    """Write an array of float32 or float64.

    The format is: item size and number of dimensions (one byte each), each dimension (8 bytes,
    little-endian), the items.

    Args:
        file: Standard output.
        array: The array.
    """
    import numpy as np

    whole = np.ascontiguousarray(array)
    file.write(struct.pack(f"<BB{whole.ndim}Q", whole.itemsize, whole.ndim, *whole.shape))
    file.write(whole.tobytes())


def serve(model: LoadedModel, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the parent closes the pipe, or after an error.

    Args:
        model: The model.
        requests: Standard input.
        answers: The pipe to the parent.
    """
    while what := requests.read(1):
        given = [read_array(requests) for _ in range(2 if what == b"V" else 1)]
        try:
            found = model.gradient(*given) if what == b"V" else model.outputs(*given)
        except Exception as error:
            write_error(answers, error)
            return
        answers.write(b"A")
        write_array(answers, found)
        answers.flush()


def write_error(answers: BinaryIO, error: Exception) -> None:
    """Write an error as the answer.

    Args:
        answers: The pipe to the parent.
        error: The error; its text is cut to ``MAX_MESSAGE_BYTES``.
    """
    text = f"{type(error).__name__}: {error}".encode(errors="replace")[:MAX_MESSAGE_BYTES]
    answers.write(b"E" + struct.pack("<I", len(text)) + text)
    answers.flush()


def main(kind: str, handle: str, cpu_seconds: str, memory: str, *places: str) -> None:
    """Set the limits, load the model and answer requests.

    Args:
        kind: ``script``, ``export`` or ``onnx``.
        handle: Descriptor of the open model file.
        cpu_seconds: Processor time, in seconds.
        memory: Memory, in bytes.
        *places: Folders from which libraries are imported.
    """
    # Text that the program prints must not mix with the answers: stdout becomes stderr.
    requests, answers = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    unlimited = 0 if leave_namespaces() else NO_NETWORK
    sys.path += [place for place in places if place not in sys.path]
    load = model_loader(kind)
    with os.fdopen(int(handle), "rb") as file:
        content = file.read()
    taken = address_space()
    unlimited |= 0 if forbid_files() else NO_LANDLOCK
    unlimited |= set_resource_limits(int(cpu_seconds), int(memory) + 2 * len(content), taken)
    unlimited |= 0 if forbid_calls() else NO_SECCOMP
    if not unlimited & NO_FILES:
        unlimited &= ~NO_NETWORK  # without files there are no sockets
    answers.write(bytes([unlimited]))
    answers.flush()
    try:
        model = load(content)
    except Exception as error:
        write_error(answers, error)
        return
    del content
    answers.write(b"R" + struct.pack("<I", model.rows))
    answers.flush()
    serve(model, requests, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
