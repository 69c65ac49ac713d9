"""The kernels: their errors at ordinary and at the worst places, and all builds of them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_words import KERNELS, blocks_of, grid_bits
from numpy.typing import NDArray

from dpaudit.trainer.noise import kernels as kernels_module
from dpaudit.trainer.noise.grid_noise import MARGIN
from dpaudit.trainer.noise.kernels import (
    DRAWS,
    NUMPY_KERNELS,
    PAIRS,
    RARE,
    Kernels,
    kernels,
    load_kernels,
)

SCALE = 2.0**48
"""A draw is at most 5.3 of these, and its error is seen in steps of 2^-48."""

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
BUILDS = {
    "plain": ["-DPLAIN"],
    "without contraction": ["-DPLAIN", "-ffp-contract=off", "-O2"],
    "AVX2": ["-DPLAIN", "-march=x86-64-v3"],
    "AVX-512": ["-DPLAIN", "-march=x86-64-v4"],
}
FLAGS = {"AVX2": "avx2", "AVX-512": "avx512dq"}


@pytest.fixture(params=KERNELS)
def chosen(request: pytest.FixtureRequest) -> Kernels:
    return KERNELS[request.param]


def random_words(seed: int, kinds: int, blocks: int = 1) -> NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 2**32, kinds * PAIRS * blocks, dtype=np.uint32)


def rounded(which: Kernels, words: NDArray[np.uint32], scale: float, margin: float) -> list[float]:
    draws = np.empty(len(words) // 2)
    undecided = which.rounded_normals(words, draws, scale, margin)(len(words) // (2 * DRAWS))
    assert undecided == np.count_nonzero(np.isnan(draws))
    return draws.tolist()


def normals(which: Kernels, words: NDArray[np.uint32]) -> NDArray[np.float32]:
    draws = torch.zeros(len(words))
    assert which.add_normals(words)(draws, 0, 0, len(words), 1.0, 1.0, 0) == len(words)
    return draws.numpy()


# The margin of the grid.

NEAR = [-3, -2, -1, 0, 1, 2, 3]
WORST_RADII = [
    # Beside the smallest u, powers of two times sqrt(1/2), 1/2, and the largest u.
    *(RARE + k for k in range(6)),
    *(round(2**power * 0.5**0.5) + near for power in range(13, 33) for near in NEAR),
    *(2**power + near for power in range(13, 32) for near in NEAR),
    *(2**32 - 2 - k for k in range(6)),
    *(2**32 - 2**power for power in range(1, 31)),
]
WORST_ANGLES = [
    *(near % 2**32 for near in range(-20, 20)),  # t = 0
    *(2**31 - 1 - k for k in range(20)),  # t = 1
    *(2**31 + k for k in range(20)),  # t = -1
]


def worst_words() -> NDArray[np.uint32]:
    random = np.random.default_rng(3)
    radii = np.array(WORST_RADII, dtype=np.uint32)
    angles = np.resize(np.array(WORST_ANGLES, dtype=np.uint32), len(radii))
    ends = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    lows = [random.choice(ends, len(radii)) for _ in range(2)]
    return blocks_of([radii, lows[0], random.permutation(angles), lows[1]])


def largest_error(which: Kernels, words: NDArray[np.uint32]) -> float:
    """Return the largest distance of a draw from what further bits can reach, in deviations."""
    largest = mpmath.mpf(0)
    with mpmath.workprec(160):
        for (radius, angle, negative, plus), found in zip(
            grid_bits(words), rounded(which, words, SCALE, -1.0), strict=True
        ):
            if np.isnan(found):
                assert radius >> 32 < RARE or radius >> 32 == 2**32 - 1
                continue
            for u, t in ((radius, angle), (radius + 1, angle + 1)):
                y = mpmath.pi / 4 * (mpmath.ldexp(t, -61) - 1)
                turned = mpmath.cos(y) + mpmath.sin(y) if plus else mpmath.cos(y) - mpmath.sin(y)
                exact = mpmath.sqrt(-mpmath.log(mpmath.ldexp(u, -64))) * turned
                magnitude = -found if negative else found
                largest = max(largest, abs(mpmath.mpf(magnitude) / SCALE - exact))
    return float(largest)


STATED = 2.0**-46.2
"""Equation (9) of docs/mathematics/grid_noise.md for the compiled kernels, cells included, plus
half of a step of SCALE."""


@given(
    st.integers(0, 2**32),
    st.sets(st.integers(0, 4), max_size=2),
    st.integers(0, 5 * DRAWS),
    st.integers(0, 5 * DRAWS),
    st.floats(-3, 3, width=32),
)
@settings(max_examples=50)
@pytest.mark.parametrize("which", KERNELS)
def test_draws_are_added_up_to_the_first_block_with_rare_words(
    which: str, seed: int, rare: set[int], one: int, other: int, factor: float
) -> None:
    chosen, words = KERNELS[which], random_words(seed, 2, 5)
    parts = words.reshape(5, 2, PAIRS)
    np.maximum(parts[:, 0], RARE, out=parts[:, 0])
    for block in rare:
        parts[block, 0, seed % PAIRS] = seed % RARE
    first, end = sorted((one, other))
    stops = [max(first, DRAWS * block) for block in rare if first < DRAWS * (block + 1)]
    expected = min([stop for stop in stops if stop < end], default=end)
    before = torch.from_numpy(np.random.default_rng(seed).normal(size=end - first + 5)).float()
    sums = before.clone()
    assert chosen.add_normals(words)(sums, 3, first, end, factor, 0.25, RARE) == expected
    added, draws = slice(3, 3 + expected - first), torch.from_numpy(normals(chosen, words))
    chosen.add_scaled(before[added], draws[first:expected], factor)
    before[added] *= 0.25
    assert torch.equal(sums, before)


@pytest.mark.parametrize("words", [worst_words(), random_words(1, 4, 8)], ids=["worst", "random"])
def test_draws_are_far_nearer_to_the_truth_than_the_margin(
    chosen: Kernels, words: NDArray[np.uint32]
) -> None:
    found = largest_error(chosen, words)
    assert found <= STATED + 0.5 / SCALE
    assert STATED < MARGIN / 2


QUARTER = (mpmath.pi / 4) ** 2
LARGEST_W = (mpmath.sqrt(2) - 1) / (mpmath.sqrt(2) + 1)
POLYNOMIALS = {
    # Name in kernels.c: Taylor series of the function, its argument's largest value, the bound.
    "g": (lambda k: mpmath.mpf(1) / (2 * k + 1), LARGEST_W**2, 2.0**-51.9),
    "sine": (lambda k: (-1) ** k / mpmath.factorial(2 * k + 1), QUARTER, 2.0**-56.2),
    "cosine": (lambda k: (-1) ** k / mpmath.factorial(2 * k), QUARTER, 2.0**-53.1),
}


def coefficients(name: str) -> list[float]:
    """Return the coefficients of a Horner scheme in kernels.c, lowest first."""
    source = Path(kernels_module.__file__).with_name("kernels.c").read_text()
    number = r"([-+]) ?(0x1\.[0-9a-f]+p[-+][0-9]+|1\.0);"
    variable = {"g": "z", "sine": "q", "cosine": "q"}[name]
    (first,) = re.findall(rf"double {name} = (0x1\S+);", source)
    rest = re.findall(rf"{name} = {name} \* {variable} {number}", source)
    found = [float.fromhex(first), *(float.fromhex(sign + value) for sign, value in rest)]
    return [*([1.0] if name == "sine" else []), *reversed(found)]  # sine = y + y q(...)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_the_polynomials_are_as_near_as_the_page_says(name: str) -> None:
    """A bound, not a sample: |T_n| <= 1, so a sum of coefficients bounds the difference."""
    taylor, most, bound = POLYNOMIALS[name]
    own, degree = coefficients(name), 30
    assert len(own) == 7
    with mpmath.workprec(400):
        difference = [
            (taylor(k) - (mpmath.mpf(own[k]) if k < len(own) else 0)) * most**k
            for k in range(degree + 1)
        ]
        # In x from 0 to 1: x^k = 2^(1-2k) (T*_k + 2k T*_(k-1) + ...), with halved last term.
        chebyshev = [mpmath.mpf(0)] * (degree + 1)
        for k, c in enumerate(difference):
            for j in range(k + 1):
                share = mpmath.binomial(2 * k, k - j) * 2 ** mpmath.mpf(1 - 2 * k)
                chebyshev[j] += c * share / (2 if j == 0 else 1)
        rest = taylor(degree + 1) * most ** (degree + 1) * 2  # of what is left out of the series
        assert sum(map(abs, chebyshev)) + abs(rest) < bound


@given(st.integers(0, 2**32), st.sampled_from([2.0**-32, 0.3, 1.0, 1331.2, 1.5e6, 2.0**32]))
@settings(max_examples=30)
def test_compiled_kernels_and_numpy_agree_wherever_both_decide(seed: int, scale: float) -> None:
    words, margin = random_words(seed, 4), max(scale, 1.0) * MARGIN
    found = [np.array(rounded(one, words, scale, margin)) for one in KERNELS.values()]
    decided = ~np.isnan(sum(found))
    assert decided.sum() > PAIRS
    assert all((one[decided] == found[0][decided]).all() for one in found)


# float32.


def float_words(radii: list[int], angles: list[int]) -> NDArray[np.uint32]:
    return blocks_of([np.array(part, dtype=np.uint32) for part in (radii, angles)])


def by_float64(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The transform of the same bits in float64."""
    radii, angles = words.reshape(-1, 2, PAIRS).swapaxes(0, 1).astype(np.int64)
    low = ((angles & 255) + 0.5) / 256
    log = np.where(
        radii < 2**31, np.log((radii + low) / 2**32), np.log1p((radii - 2**32 + low) / 2**32)
    )
    y = np.pi / 4 * (((angles ^ 2**31) >> 10) + 0.5 - 2**21) / 2**21
    turned = np.stack([np.cos(y) - np.sin(y), np.cos(y) + np.sin(y)], axis=1)
    signs = np.stack([1 - 2 * (angles >> 8 & 1), 1 - 2 * (angles >> 9 & 1)], axis=1)
    return np.asarray((np.sqrt(-log)[:, None] * turned * signs).ravel())


FLOAT_ERROR = 2.0**-20
"""What docs/sharp_edges.md states: of a draw in float32, against the transform of its bits."""

WORST_FLOATS = float_words(
    [radius for radius in WORST_RADII for _ in range(4)],
    [
        (at << 10 | low) % 2**32
        for k in range(len(WORST_RADII))
        for at, low in ((k % 7 - 3, 0), (2**21 - 1 - k % 5, 1023), (-(2**21), k), (k * 4999, 255))
    ],
)


@pytest.mark.parametrize("words", [WORST_FLOATS, random_words(2, 2, 2000)], ids=["worst", "random"])
def test_float_draws_are_the_transform_of_their_bits(
    chosen: Kernels, words: NDArray[np.uint32]
) -> None:
    errors = np.abs(normals(chosen, words).astype(np.float64) - by_float64(words))
    assert errors.max() < FLOAT_ERROR


@given(radius=st.integers(0, 2**32 - 1), angle=st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_no_word_gives_an_infinite_draw(radius: int, angle: int) -> None:
    words = float_words([radius], [angle])
    for one in KERNELS.values():
        draws = normals(one, words)
        assert np.isfinite(draws).all()
        assert np.abs(draws).max() < 7.6


def test_a_radius_near_one_is_neither_zero_nor_infinite(chosen: Kernels) -> None:
    """In float32, (w + 2^31 + 1/2) 2^-32 would be 0 or 1 for these words: r infinite or zero."""
    radii = [*range(130), *range(2**32 - 130, 2**32), *range(2**31 - 70, 2**31 + 70)]
    # Half way through the quadrant the draw is the radius.
    draws = normals(chosen, float_words(radii, [0] * len(radii))).reshape(-1, 2, PAIRS)
    found = draws[:, 1].ravel()[: len(radii)].astype(np.float64)
    exact = np.sqrt([-np.log1p((r - 2**32 + 1 / 512) / 2**32) for r in radii[130:260]])
    assert np.allclose(found[130:260], exact, rtol=1e-6, atol=0)
    assert np.allclose(found[:130], np.sqrt([-np.log((r + 1 / 512) / 2**32) for r in radii[:130]]))
    assert (np.diff(found[:130]) < 0).all()


# Builds.


def supports(flag: str) -> bool:
    path = Path("/proc/cpuinfo")
    return path.exists() and flag in path.read_text().split()


@pytest.mark.skipif(COMPILER is None, reason="no C compiler here: numpy's kernels are tested")
@pytest.mark.skipif(platform.system() == "Windows", reason="the flags are those of gcc and clang")
@pytest.mark.parametrize("build", BUILDS)
def test_every_build_gives_the_same_integers(build: str, tmp_path: Path) -> None:
    if build in FLAGS and not supports(FLAGS[build]):
        pytest.skip(f"this processor has no {build}")
    assert COMPILER is not None
    source = Path(kernels_module.__file__).with_name("kernels.c")
    library = tmp_path / "kernels.so"
    flags = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", *BUILDS[build]]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library), "-lm"], check=True)
    built = load_kernels(library)
    for words in (worst_words(), random_words(4, 4, 500)):
        for scale in (0.7, 1331.2, 1.5e6, 2.0**32):
            pair = [
                np.array(rounded(one, words, scale, max(scale, 1.0) * MARGIN))
                for one in (built, NUMPY_KERNELS)
            ]
            decided = ~np.isnan(pair[0] + pair[1])
            assert (pair[0][decided] == pair[1][decided]).all()
            assert np.isnan(pair[0]).mean() < 0.3  # the worst radii are rare by intent
    assert largest_error(built, worst_words()) <= STATED + 0.5 / SCALE
    words = random_words(5, 2, 100)
    assert np.abs(normals(built, words) - by_float64(words)).max() < FLOAT_ERROR


@pytest.mark.skipif(COMPILER is None, reason="no C compiler here")
@pytest.mark.skipif(platform.system() == "Windows", reason="the flags are those of gcc and clang")
def test_a_build_that_breaks_the_arithmetic_is_refused(tmp_path: Path) -> None:
    assert COMPILER is not None
    source = Path(kernels_module.__file__).with_name("kernels.c")
    done = subprocess.run(
        [COMPILER, "-DPLAIN", "-Ofast", "-c", str(source), "-o", str(tmp_path / "kernels.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "IEEE 754" in done.stderr


WHEEL = "import setuptools.build_meta as build; build.build_wheel('wheels')"


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [COMPILER, "false"])
def test_an_installation_without_a_compiler_lacks_the_module_alone(
    compiler: str | None, tmp_path: Path
) -> None:
    pytest.importorskip("setuptools", "77")
    if compiler is None:
        pytest.skip("no C compiler here")
    root = Path(kernels_module.__file__).parents[3]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    shutil.copytree(root / "dpaudit", tmp_path / "dpaudit", ignore=ignored)
    (tmp_path / "wheels").mkdir()
    environment = {**os.environ, "CC": compiler}
    done = subprocess.run(
        [sys.executable, "-c", WHEEL],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "dpaudit/trainer/noise/kernels.py" in names
    assert any("noise/_kernels." in name for name in names) == (compiler != "false")


# Which one is used.


@pytest.fixture
def _no_cache() -> Iterator[None]:
    kernels.cache_clear()
    yield
    kernels.cache_clear()


@pytest.mark.usefixtures("_no_cache")
def test_without_a_compiled_module_numpy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "EXTENSION_SUFFIXES", [".not-built"])
    assert kernels() is NUMPY_KERNELS


@pytest.mark.usefixtures("_no_cache")
def test_where_bytes_are_in_another_order_numpy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module.sys, "byteorder", "big")
    assert kernels() is NUMPY_KERNELS


# Sums.


@given(st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=70))
@settings(max_examples=50)
def test_sums_are_rounded_and_noise_is_added_without_error(values: list[float]) -> None:
    grid = 2.0**-7
    noise = np.random.default_rng(1).integers(-(2**36), 2**36, len(values)).astype(np.float64)
    for one in KERNELS.values():
        sums = torch.tensor(values)
        assert one.add_units(sums, torch.from_numpy(noise), grid, 1.0) == 0
        steps = np.rint(np.array(values, dtype=np.float32).astype(np.float64) / grid)
        assert (sums.numpy() == ((steps + noise) * grid).astype(np.float32)).all()


@pytest.mark.parametrize(
    ("values", "refused"),
    [([2.0**52, -(2.0**52)], 0), ([2.0**53], 1), ([1.0, np.nan, np.inf, -np.inf], 3)],
)
def test_sums_that_cannot_be_rounded_are_counted(
    chosen: Kernels, values: list[float], refused: int
) -> None:
    units = torch.zeros(len(values), dtype=torch.float64)
    assert chosen.add_units(torch.tensor(values), units, 1.0, 1.0) == refused
