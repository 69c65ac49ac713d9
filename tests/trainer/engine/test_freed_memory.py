"""Memory that a step frees is there for the next one, without new pages."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
import json
import os
import torch
from dpaudit.trainer.engine.freed_memory import keep_freed_memory

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()

class Statistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Statistics

def of_one_block() -> tuple[int, int]:
    before = mallinfo2()
    block = torch.empty(31 * 2**20, dtype=torch.uint8)
    held = mallinfo2()
    del block
    return held.hblkhd - before.hblkhd, held.arena - mallinfo2().arena

def in_a_child() -> list[int]:
    receiver, sender = os.pipe()
    if os.fork() == 0:
        os.write(sender, json.dumps(of_one_block()).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(receiver, 100))

by_default = in_a_child()
keep_freed_memory()
print(json.dumps([by_default, of_one_block()]))
"""

STATISTICS = platform.libc_ver()[0] == "glibc" and hasattr(ctypes.CDLL(None), "mallinfo2")
SETTINGS = {
    "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TOP_PAD_",
}


@pytest.mark.needs("torch")
@pytest.mark.skipif(not STATISTICS, reason="reads the allocator of GNU/Linux, from glibc 2.33 on")
def test_a_large_block_is_neither_mapped_apart_nor_returned() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    printed = subprocess.check_output([sys.executable, "-c", SCRIPT], env=environment)
    (mapped_by_default, _), (mapped, returned) = json.loads(printed)
    assert mapped_by_default > 31 * 2**20  # so the next line can fail
    assert mapped == 0
    assert returned == 0


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "1048576", True),
        ("MALLOC_MMAP_MAX_", "0", True),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1048576", True),
        ("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2_Usable", False),
        ("MALLOC_ARENA_MAX", "2", False),
    ],
)
def test_limits_of_the_user_are_found(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: bool
) -> None:
    from dpaudit.trainer.engine.freed_memory import limits_are_set_by_the_user

    for setting in SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setenv(name, value)
    assert limits_are_set_by_the_user() is expected
