"""Each attack equals its published formula, computed here token by token in plain Python."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from dpaudit.attacks.language_models.likelihood_attacks import (
    LIKELIHOOD_ATTACKS,
    loss_scores,
    min_k_plus_plus_scores,
    min_k_scores,
    possible_attacks,
    reference_difference_scores,
    reference_ratio_scores,
    zlib_scores,
)
from dpaudit.attacks.language_models.token_signals import (
    SamplingScheme,
    TokenSignals,
    signals_of_log_distribution,
    zlib_bytes,
)
from dpaudit.vocabulary.errors import InvalidArgument

TEXT = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate."
VOCABULARY, TOKENS = 7, 23


def distributions(seed: int) -> list[list[float]]:
    """Random distributions over a small vocabulary, one per position."""
    rng = np.random.default_rng(seed)
    found = rng.dirichlet(np.full(VOCABULARY, 0.4), TOKENS) + 1e-6
    return [[float(p) / math.fsum(row) for p in row] for row in found.tolist()]


def chosen_tokens(seed: int) -> list[int]:
    return np.random.default_rng([seed, 1]).integers(0, VOCABULARY, TOKENS).tolist()


@pytest.fixture(params=range(5))
def case(request: pytest.FixtureRequest) -> tuple[list[list[float]], list[int], TokenSignals]:
    rows, tokens = distributions(request.param), chosen_tokens(request.param)
    signals = signals_of_log_distribution(np.log(rows), np.array(tokens))
    reference = np.log([row[t] for row, t in zip(distributions(99), tokens, strict=True)])
    return rows, tokens, TokenSignals(
        signals.log_probabilities, signals.means, signals.deviations, signals.greedy,
        reference=reference, compressed_bytes=zlib_bytes(TEXT),
    )  # fmt: skip


Case = tuple[list[list[float]], list[int], TokenSignals]


def log_probabilities(case: Case) -> list[float]:
    return [math.log(row[token]) for row, token in zip(case[0], case[1], strict=True)]


def test_loss_zlib_and_reference_equal_their_formulas(case: Case) -> None:
    own = log_probabilities(case)
    mean = math.fsum(own) / TOKENS
    reference = [float(x) for x in case[2].reference.tolist()]  # type: ignore[union-attr]
    of_reference = math.fsum(reference) / TOKENS
    texts = [case[2]]
    assert loss_scores(texts).values[0] == pytest.approx(mean, abs=1e-9)
    compressed = len(zlib.compress(TEXT.encode("utf-8")))
    assert zlib_scores(texts).values[0] == pytest.approx(mean / compressed, abs=1e-9)
    ratio = -(mean / of_reference)
    assert reference_ratio_scores(texts).values[0] == pytest.approx(ratio, abs=1e-9)
    difference = reference_difference_scores(texts).values[0]
    assert difference == pytest.approx(mean - of_reference, abs=1e-9)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
def test_min_k_averages_the_least_probable_tokens(case: Case, share: float) -> None:
    count = max(1, int(share * TOKENS))
    expected = math.fsum(sorted(log_probabilities(case))[:count]) / count
    assert min_k_scores([case[2]], share=share).values[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_min_k_plus_plus_normalizes_over_the_vocabulary(case: Case, share: float) -> None:
    normalized = []
    for row, own in zip(case[0], log_probabilities(case), strict=True):
        mu = math.fsum(p * math.log(p) for p in row)
        variance = math.fsum(p * math.log(p) ** 2 for p in row) - mu**2
        normalized.append((own - mu) / math.sqrt(variance))
    count = max(1, int(share * TOKENS))
    expected = math.fsum(sorted(normalized)[:count]) / count
    found = min_k_plus_plus_scores([case[2]], share=share).values[0]
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_share_that_is_a_whole_number_of_tokens_is_not_rounded_down() -> None:
    text = TokenSignals(-np.arange(1.0, 101.0))
    assert min_k_scores([text], share=0.29).values[0] == -(100 + 72) / 2  # 29 tokens, not 28


def test_a_uniform_distribution_has_the_normalized_value_0() -> None:
    uniform = np.full((3, 4), math.log(0.25))
    signals = signals_of_log_distribution(uniform, np.array([0, 3, 2]))
    assert min_k_plus_plus_scores([signals], share=1.0).values[0] == 0


def test_impossible_tokens_do_not_turn_moments_into_nan() -> None:
    with np.errstate(divide="ignore"):
        rows = np.log([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    signals = signals_of_log_distribution(rows, np.array([1, 0]))
    assert signals.means == pytest.approx([math.log(0.5), 0.0])
    assert signals.deviations == pytest.approx([0.0, 0.0])
    assert signals.greedy is not None
    assert signals.greedy.tolist() == [False, True]  # of equal tokens, greedy takes the first


def test_attacks_are_named_by_the_signals_that_they_need() -> None:
    plain = TokenSignals(np.array([-1.0]))
    assert possible_attacks([plain]) == ("loss", "min-k")
    full = TokenSignals(np.array([-1.0]), np.array([-1.0]), np.array([1.0]),
                        reference=np.array([-1.0]), compressed_bytes=9)  # fmt: skip
    assert possible_attacks([full]) == tuple(LIKELIHOOD_ATTACKS)
    assert possible_attacks([full, plain]) == ("loss", "min-k")
    for name in ("zlib", "min-k++", "reference-ratio", "reference-difference"):
        with pytest.raises(InvalidArgument, match="given for every text"):
            LIKELIHOOD_ATTACKS[name]([full, plain])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"log_probabilities": np.array([])}, "at least one token"),
        ({"log_probabilities": np.array([np.nan])}, "at most 0"),
        ({"log_probabilities": np.array([-np.inf])}, "finite"),
        ({"log_probabilities": np.array([0.1])}, "at most 0"),
        ({"means": np.array([-1.0, -1.0])}, "one value for each"),
        ({"deviations": np.array([-1.0])}, "at least 0"),
        ({"deviations": np.array([np.nan])}, "at least 0"),
        ({"drawn": np.array([np.nan])}, "at most 0"),
        ({"reference": np.array([0.5])}, "at most 0"),
        ({"compressed_bytes": 0}, "compressed_bytes"),
    ],
)
def test_signals_out_of_range_are_refused(fields: dict[str, object], text: str) -> None:
    valid: dict[str, object] = {"log_probabilities": np.array([-1.0])}
    with pytest.raises(InvalidArgument, match=text):
        TokenSignals(**(valid | fields))  # type: ignore[arg-type]


def test_a_reference_that_is_certain_has_no_ratio() -> None:
    with pytest.raises(InvalidArgument, match="below 0"):
        reference_ratio_scores([TokenSignals(np.array([-1.0]), reference=np.array([0.0]))])


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(InvalidArgument, match="temperature"):
        SamplingScheme(temperature)
