"""The stream made on devices: the RFC's vectors, another library's words, laws of normals."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dpaudit.trainer.noise import gaussian_draws
from dpaudit.trainer.noise import gaussian_draws as device_stream
from dpaudit.trainer.noise.gaussian_draws import (
    box_muller,
    chacha20_blocks,
    derive_device_key,
    device_normals,
    words,
    words_needed,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument

KEY = bytes(range(32))
NOISE = Purpose.GRADIENT_NOISE
keys = st.binary(min_size=32, max_size=32)
purposes, steps = st.sampled_from(Purpose), st.integers(0, 2**64 - 1)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: the stream on one is not tested here")
    return str(request.param)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short streams be made in several parts, too."""
    for name in ("CPU_BLOCKS", "DEVICE_BLOCKS"):
        monkeypatch.setattr(device_stream, name, 7)
    for name in ("CPU_PAIRS", "DEVICE_PAIRS"):
        monkeypatch.setattr(gaussian_draws, name, 100)


def keystream(key: bytes, nonce: bytes, first: int, count: int, device: str) -> bytes:
    """The bytes of ``count`` blocks."""
    state = struct.unpack("<16i", b"expand 32-byte k" + key + bytes(4) + nonce)
    rows = torch.tensor(state, dtype=torch.int32, device=device).view(4, 4)
    return to_bytes(chacha20_blocks(rows, first, count))


def to_bytes(found: Tensor) -> bytes:
    return found.cpu().numpy().astype("<i4").tobytes()


def reference(key: bytes, nonce: bytes, first: int, length: int) -> bytes:
    """The keystream of the cryptography package; its nonce begins with the counter."""
    cipher = Cipher(algorithms.ChaCha20(key, first.to_bytes(4, "little") + nonce), mode=None)
    return cipher.encryptor().update(bytes(length))


# RFC 8439, section 2.3.2.
BLOCK_NONCE = bytes.fromhex("000000090000004a00000000")
BLOCK = bytes.fromhex(
    "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
    "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
)

# RFC 8439, section 2.4.2.
SUNSCREEN_NONCE = bytes.fromhex("000000000000004a00000000")
SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
    b"future, sunscreen would be it."
)
SUNSCREEN_CIPHER = bytes.fromhex(
    "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
    "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
    "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
    "5af90bbf74a35be6b40b8eedf2785e42874d"
)

# RFC 8439, appendix A.1: key, nonce, counter, block.
ZEROS = bytes(32)
APPENDIX = [
    (
        ZEROS,
        bytes(12),
        0,
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    (
        ZEROS,
        bytes(12),
        1,
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    (
        ZEROS[1:] + b"\x01",
        bytes(12),
        1,
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    (
        b"\x00\xff" + ZEROS[2:],
        bytes(12),
        2,
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
    (
        ZEROS,
        bytes(11) + b"\x02",
        0,
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
    ),
]


def test_the_block_function_is_that_of_the_standard(device: str) -> None:
    assert keystream(KEY, BLOCK_NONCE, 1, 1, device) == BLOCK


def test_the_keystream_is_that_of_the_standard(device: str) -> None:
    found = keystream(KEY, SUNSCREEN_NONCE, 1, 2, device)[: len(SUNSCREEN)]
    assert bytes(a ^ b for a, b in zip(found, SUNSCREEN, strict=True)) == SUNSCREEN_CIPHER


@pytest.mark.parametrize(("key", "nonce", "counter", "block"), APPENDIX)
def test_the_vectors_of_the_standard_hold(
    key: bytes, nonce: bytes, counter: int, block: str, device: str
) -> None:
    assert keystream(key, nonce, counter, 1, device) == bytes.fromhex(block)


@given(
    keys,
    st.binary(min_size=12, max_size=12),
    st.integers(0, 2**32 - 20),
    st.integers(1, 20),
)
@example(KEY, bytes(12), 2**31 - 3, 6)
@example(KEY, bytes(12), 2**32 - 3, 3)
def test_blocks_are_those_of_another_library(
    key: bytes, nonce: bytes, first: int, count: int
) -> None:
    found = keystream(key, nonce, first, count, "cpu")
    assert found == reference(key, nonce, first, 64 * count)


@given(keys, purposes, steps, st.integers(0, 600))
def test_words_are_those_of_another_library(
    key: bytes, purpose: Purpose, step: int, count: int
) -> None:
    nonce = struct.pack("<IQ", purpose.value, step)
    found = words(key, purpose, step, count, "cpu")
    assert found.dtype == torch.int32
    assert to_bytes(found) == reference(key, nonce, 0, 4 * count)


def test_words_are_the_same_on_every_device(device: str) -> None:
    nonce = struct.pack("<IQ", NOISE.value, 5)
    assert to_bytes(words(KEY, NOISE, 5, 1003, device)) == reference(KEY, nonce, 0, 4012)


def test_result_is_independent_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = words(KEY, NOISE, 1, 1003, "cpu"), device_normals(KEY, NOISE, 1, 5_001, "cpu")
    monkeypatch.setattr(device_stream, "CPU_BLOCKS", 2**12)
    monkeypatch.setattr(gaussian_draws, "CPU_PAIRS", 2**22)
    whole = words(KEY, NOISE, 1, 1003, "cpu"), device_normals(KEY, NOISE, 1, 5_001, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


def test_no_two_addresses_share_a_block() -> None:
    addresses = [(purpose, step) for purpose in Purpose for step in (0, 1, 255, 256, 2**48)]
    drawn = torch.cat([words(KEY, purpose, step, 64, "cpu") for purpose, step in addresses])
    pairs = drawn.view(torch.int64)
    assert len(pairs.unique()) == len(pairs)  # by chance: once in 10^12 runs


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused_and_not_shown(length: int) -> None:
    with pytest.raises(InvalidArgument, match=f"key must be of 32 bytes, got '{length} bytes'"):
        words(bytes(length), NOISE, 0, 1, "cpu")


@pytest.mark.parametrize("count", [-1, 2**36 + 1])
def test_more_blocks_than_have_an_address_are_refused(count: int) -> None:
    with pytest.raises(InvalidArgument, match="count"):
        words(KEY, NOISE, 0, count, "cpu")


@pytest.mark.parametrize("step", [-1, 2**64])
def test_a_step_beyond_the_address_is_refused_and_never_wraps(step: int) -> None:
    with pytest.raises(OverflowError):
        words(KEY, NOISE, step, 1, "cpu")


def test_the_key_is_fresh_where_the_stream_is() -> None:
    streams = [Keystream.secure(), Keystream.secure(), Keystream.seeded(1), Keystream.seeded(2)]
    assert len({derive_device_key(stream) for stream in streams}) == 4
    assert derive_device_key(Keystream.seeded(1)) == derive_device_key(Keystream.seeded(1))
    assert len(derive_device_key(streams[0])) == 32


@pytest.mark.slow
def test_the_blocks_can_be_traced_in_one_piece() -> None:
    state = torch.arange(16, dtype=torch.int32).view(4, 4)
    traced = torch.compile(chacha20_blocks, backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(state, 2**32 - 2, 5), chacha20_blocks(state, 2**32 - 2, 5))


# Normals.


@given(keys, st.integers(0, 50))
@settings(max_examples=30)
def test_normals_are_those_of_the_same_bits_in_the_host_s_stream(key: bytes, count: int) -> None:
    nonce = struct.pack("<IQ", NOISE.value, 9)
    drawn = bytearray(reference(key, nonce, 0, 8 * words_needed(count)))
    bits = (
        torch.frombuffer(drawn, dtype=torch.int64) if drawn else torch.empty(0, dtype=torch.int64)
    )
    found = device_normals(key, NOISE, 9, count, "cpu")
    assert found.shape == (count,)
    assert found.dtype == torch.float32
    assert torch.equal(found, box_muller(bits, count))


@given(st.integers(0, 2000), st.integers(0, 2**64))
@settings(max_examples=30)
def test_box_muller_is_the_textbook_s(count: int, seed: int) -> None:
    stream = Keystream.seeded(seed)
    drawn, pairs = stream.bits(NOISE, 2, 8 * words_needed(count)), (count + 1) // 2
    bits = torch.frombuffer(drawn, dtype=torch.int64) if count else torch.empty(0).long()
    found = box_muller(bits, count).double().numpy()
    radii = np.frombuffer(drawn, dtype="<u8")[:pairs]
    angles = np.frombuffer(drawn, dtype="<i4")[2 * pairs :][:pairs]
    uniform = ((radii % 2**53).astype(np.float64) + 0.5) / 2**53
    radius, angle = np.sqrt(-2 * np.log(uniform)), np.pi * angles / 2**31
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    assert np.allclose(found, expected, rtol=0, atol=4e-6)


def test_normals_agree_with_the_host_s_on_every_device(device: str) -> None:
    on_device, on_host = (
        device_normals(KEY, NOISE, 1, 5001, place).cpu() for place in (device, "cpu")
    )
    assert torch.allclose(on_device, on_host, rtol=0, atol=1e-5)


def test_normals_are_normal(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_stream, "CPU_BLOCKS", 2**12)
    monkeypatch.setattr(device_stream, "DEVICE_BLOCKS", 2**12)
    monkeypatch.setattr(gaussian_draws, "CPU_PAIRS", 2**15)
    monkeypatch.setattr(gaussian_draws, "DEVICE_PAIRS", 2**15)
    count = 300_001
    found = device_normals(bytes(32), NOISE, 0, count, device).cpu().double().numpy()
    assert stats.kstest(found, "norm").pvalue > 1e-3
    # Central limit theorem: the k-th moment's deviation, from the 2k-th; within 4 of them.
    for order, context, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(found**order) - context) < 4 * np.sqrt(variance / count)


class Storages(TorchDispatchMode):
    """Sees every tensor that is made, and keeps the sizes of those above a bound."""

    def __init__(self, bound: int) -> None:
        super().__init__()
        self._bound = bound
        self.large: dict[int, int] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = op(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            storage = tensor.untyped_storage()
            if storage.nbytes() > self._bound:
                self.large[storage.data_ptr()] = storage.nbytes()
        return made


def test_beside_the_bits_and_the_draws_nothing_large_is_made(device: str) -> None:
    a_part = 8 * 100  # a float64 a pair
    with Storages(a_part) as storages:
        drawn = words(KEY, NOISE, 0, 2_000, device)
    assert list(storages.large.values()) == [drawn.nbytes]
    with Storages(a_part) as storages:
        draws = device_normals(KEY, NOISE, 0, 1_500, device)
    assert sorted(storages.large.values()) == [draws.nbytes, draws.nbytes * 3 // 2]
