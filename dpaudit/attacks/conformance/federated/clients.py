"""All conformance tests of a client, combined in one result.

The local steps of a client are tested like those of any trainer: replayed with one record more,
their noise in all rounds, their sampler. Further tests are those of the reply: the upload is what
the recorded steps give, its weight and its metrics do not depend on single records, and no two
clients of a run share noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpaudit.attacks.conformance.correlation import (
    Correlations,
    correlation_finding,
    correlation_matrix,
)
from dpaudit.attacks.conformance.federated.client_protocol import (
    ClientTrainer,
    MakeClient,
    recorded_sums,
)
from dpaudit.attacks.conformance.statistical_tests import (
    Array,
    Effort,
    failed_finding,
    inconclusive_finding,
)
from dpaudit.attacks.conformance.trainer_protocol import (
    Record,
    derive_seeds,
    seed_global_generators,
)
from dpaudit.vocabulary.conformance import (
    Assumption,
    ConformanceFinding,
    ConformanceResult,
    StepClaim,
)
from dpaudit.vocabulary.errors import require_count
from dpaudit.vocabulary.settings import Progress
from dpaudit.vocabulary.verdict import Outcome

UPLOAD_CHECK, CORRELATION_CHECK = "replay", "correlation"
UPLOAD_SEEDS, METRIC_SEEDS, CLIENT_SEEDS = 80, 81, 82
UPLOADED_ROUNDS, METRIC_RUNS = 3, 4
UPLOAD_TOLERANCE = 1e-4
"""Relative: rounding of an upload that is computed in float32."""
COMPARED_CLIENTS, COMPARED_COORDINATES = 4, 20_000


def check_client(
    make_client: MakeClient,
    claim: StepClaim,
    *,
    records: Sequence[Record],
    probes: Sequence[Record] | int | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    assumptions: Sequence[Assumption] = (),
) -> ConformanceResult:
    """Test whether the local steps of a client are those that ``claim`` describes.

    If the client conforms, the verdict is FAIL with probability at most ``LEVEL``.

    Args:
        make_client: Makes the client of a participant from records, a seed and a number; see
            ``federated.client_protocol``.
        claim: The claim on each local step. Its ``steps`` are those of all rounds, and its
            ``update_scale`` is 1, since noisy sums are recorded.
        records: Ordinary records ``(x, y)``, at least two.
        probes: Records to replay in place of derived ones; None to derive them; a number to
            replay so many of ``records`` as well.
        effort: How much to run. None is enough to detect 2% less noise than claimed.
        seed: Seed of the audit, at least 0.
        progress: Receives each finished check of the local steps.
        assumptions: What is assumed instead of tested.

    Returns:
        All findings, with their verdict.

    Raises:
        InvalidArgument: If there are fewer than two records, or if the client or ``seed`` does
            not meet the protocol.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks.conformance import Effort, StepClaim
        >>> from dpaudit.attacks.conformance.federated import check_client
        >>> class Client:  # two local steps per round on vectors
        ...     global_model = np.zeros(8)
        ...     def __init__(self, records, seed, participant):
        ...         self.rows = np.array([x for x, _ in records]).reshape(-1, 8)
        ...         self.key, self.number = [seed, participant], 0
        ...     def local_update(self, model):
        ...         self.noisy_sums, self.sampled = [], []
        ...         for _ in range(2):
        ...             self.number += 1
        ...             rng = np.random.default_rng([*self.key, self.number])
        ...             noise = 2.0 * rng.standard_normal(8)
        ...             chosen = np.flatnonzero(rng.random(100)[: len(self.rows)] < 0.5)
        ...             rows = self.rows[chosen]
        ...             rows = rows[np.isfinite(rows).all(axis=1)]
        ...             norms = np.linalg.norm(rows, axis=1, keepdims=True)
        ...             self.sampled.append(chosen)
        ...             self.noisy_sums.append((rows / np.maximum(norms, 1)).sum(axis=0) + noise)
        ...         return self.recompute(model, self.noisy_sums)
        ...     def recompute(self, model, noisy_sums):
        ...         return -0.1 * np.sum(noisy_sums, axis=0)
        >>> claim = StepClaim(
        ...     noise_multiplier=2.0, clip_norm=1.0, sampling_rate=0.5, steps=10, update_scale=1.0
        ... )
        >>> records = [(np.full(8, float(i)), 0) for i in range(1, 5)]
        >>> effort = Effort(
        ...     noise_samples=2_000, sampler_steps=20, longest_run=10, replays=1,
        ...     longest_replay=20, search_steps=100,
        ... )
        >>> check_client(Client, claim, records=records, effort=effort).verdict.value
        'PASS'
    """
    from dpaudit.attacks.conformance import check, conformance_result  # noqa: PLC0415 - imports us

    require_count("seed", seed, least=0)
    steps = check(
        TrainerOfClient(make_client), claim, records=records, probes=probes, effort=effort,
        seed=seed, progress=progress, assumptions=assumptions,
    )  # fmt: skip
    findings = [
        *steps.findings,
        *check_uploads(make_client, records, seed),
        *check_metrics(make_client, records, seed),
        check_noise_of_clients(make_client, records, seed),
    ]
    return conformance_result(steps.claim, findings, assumptions=steps.assumptions)


@dataclass(frozen=True)
class TrainerOfClient:
    """Makes trainers of the local steps of participant 0.

    Attributes:
        make_client: Makes the client.
    """

    make_client: MakeClient

    def __call__(self, records: Sequence[Record], seed: int) -> ClientTrainer:
        """Return a trainer.

        Args:
            records: The records of the client.
            seed: Seed of the run.

        Returns:
            The client as a trainer.
        """
        return ClientTrainer(self.make_client(records, seed, 0))


def check_uploads(
    make_client: MakeClient, records: Sequence[Record], seed: int
) -> list[ConformanceFinding]:
    """Test that uploads are what the recorded noisy sums give.

    Args:
        make_client: Makes the client.
        records: Ordinary records.
        seed: Seed of the audit.

    Returns:
        One finding: INCONCLUSIVE if the client has no method ``recompute``.
    """
    name = "uploads"
    tested = f"uploads of {UPLOADED_ROUNDS} rounds against their recorded local steps"
    (one,) = derive_seeds(seed, UPLOAD_SEEDS, 1)
    worst, wrong = 0.0, []
    for count in (len(records), len(records) - 1):
        client = _made(make_client, records[:count], one, 0)
        if not hasattr(client, "recompute"):
            why = (
                "the client has no method recompute, so the upload may hold more than the recorded "
                "local steps give"
            )
            return [inconclusive_finding(UPLOAD_CHECK, name, tested, why)]
        model = np.array(client.global_model, dtype=np.float64)
        for number in range(UPLOADED_ROUNDS):
            upload = _update(client, model, (one, number))
            given = np.asarray(client.recompute(model, recorded_sums(client, upload.size)))
            apart = _relative_difference(upload, given)
            worst = max(worst, apart)
            if not apart <= UPLOAD_TOLERANCE:
                wrong.append(f"round {number} on {count} records: {_how_apart(upload, given)}")
            model = model + upload
    if wrong:
        why = f"an upload is not what its local steps give: {wrong[0]}"
        return [failed_finding(UPLOAD_CHECK, name, tested, why)]
    return [
        ConformanceFinding(
            check=UPLOAD_CHECK, name=name, outcome=Outcome.PASS, tested=tested,
            why=f"uploads differ from what the local steps give by at most {worst:.2g} of their "
            "norm",
            power=f"a difference above {UPLOAD_TOLERANCE:g} of the upload's norm is detected",
        )
    ]  # fmt: skip


def check_metrics(
    make_client: MakeClient, records: Sequence[Record], seed: int
) -> list[ConformanceFinding]:
    """Test that the metrics of a reply do not depend on single records.

    Args:
        make_client: Makes a client that may have ``metrics``.
        records: Ordinary records.
        seed: Seed of the audit.

    Returns:
        One finding; none if replies hold no metrics.
    """
    tested = "the metrics of a reply with and without one record"
    moved: dict[str, str] = {}
    names: set[str] = set()
    for one in derive_seeds(seed, METRIC_SEEDS, METRIC_RUNS):
        found = []
        for count in (len(records), len(records) - 1):
            client = _made(make_client, records[:count], one, 0)
            _update(client, np.array(client.global_model, dtype=np.float64), (one, 0))
            found.append(dict(getattr(client, "metrics", None) or {}))
        names |= set(found[0]) | set(found[1])
        moved |= {
            name: f"{name} is {found[0].get(name)} with the record and {found[1].get(name)} without"
            for name in sorted(names)
            if found[0].get(name) != found[1].get(name)
        }
    if moved:
        why = (
            f"released without noise: {'; '.join(moved.values())}. Leave it out of the reply, or "
            "list it as unaccounted for"
        )
        return [failed_finding(UPLOAD_CHECK, "metrics", tested, why)]
    if not names:
        return []
    return [
        ConformanceFinding(
            check=UPLOAD_CHECK, name="metrics", outcome=Outcome.PASS, tested=tested,
            why=f"{', '.join(sorted(names))} did not change",
            power=f"exact for these records, under {METRIC_RUNS} seeds",
        )
    ]  # fmt: skip


def check_noise_of_clients(
    make_client: MakeClient, records: Sequence[Record], seed: int
) -> ConformanceFinding:
    """Test that no two clients of a run share noise.

    Clients on no records start with different and with equal states of the global generators.
    Equal states happen where every client seeds them alike.

    Args:
        make_client: Makes the clients.
        records: Ordinary records, for clients that do not accept an empty data set.
        seed: Seed of the audit.

    Returns:
        The finding. For clients that need records, only equal sums are detected.
    """
    (one,) = derive_seeds(seed, CLIENT_SEEDS, 1)
    between, name = "the noise of every two clients of a run", "clients"
    kept, rows, labels = None, [], []
    empty = True
    for kind, offset in (("different", 1), ("equal", 0)):
        for participant in range(COMPARED_CLIENTS):
            state = (one, 1 + offset * (1 + participant))
            sums, was_empty = _first_sums(make_client, records, one, participant, state)
            empty = empty and was_empty
            kept = _kept(sums.shape[1]) if kept is None else kept
            rows.append((kind, participant, sums[:, kept].ravel()))
    for i, (kind, participant, _) in enumerate(rows):
        labels += [
            (
                i,
                j,
                f"clients {participant} and {rows[j][1]}, {kind} states of the global generators",
            )
            for j in range(i + 1, len(rows))
            if rows[j][0] == kind
        ]
    size = min(len(row) for _, _, row in rows)
    matrix = np.array([row[:size] for _, _, row in rows])
    same = [text for i, j, text in labels if np.array_equal(matrix[i], matrix[j])]
    if same:
        why = f"noise is reused: the local steps are equal for {same[0]}"
        return failed_finding(CORRELATION_CHECK, name, f"correlation between {between}", why)
    if not empty:
        why = "the client does not accept an empty data set: only equal sums are detected"
        return inconclusive_finding(CORRELATION_CHECK, name, between, why)
    full = correlation_matrix(matrix, matrix)
    values = np.array([full[i, j] for i, j, _ in labels])
    counts = np.full(len(labels), size)
    return correlation_finding(
        name, between, Correlations(values, counts, [text for _, _, text in labels])
    )


def _first_sums(
    make_client: MakeClient,
    records: Sequence[Record],
    seed: int,
    participant: int,
    state: tuple[int, ...],
) -> tuple[Array, bool]:
    """Return the first round's noisy sums, and whether the client had no records."""
    for data in ((), records):
        try:
            with seed_global_generators(*state):
                client = make_client(data, seed, participant)
                upload = np.asarray(client.local_update(np.array(client.global_model)))
                return recorded_sums(client, upload.size), len(data) == 0
        except Exception:  # a client may fail in any way on an empty data set
            if len(data):
                raise
    raise AssertionError("unreachable")


def _kept(dimension: int) -> Any:
    if dimension <= COMPARED_COORDINATES:
        return np.arange(dimension)
    return np.sort(np.random.default_rng(0).choice(dimension, COMPARED_COORDINATES, replace=False))


def _made(make_client: MakeClient, records: Sequence[Record], seed: int, participant: int) -> Any:
    with seed_global_generators(seed, participant, 0):
        return make_client(records, seed, participant)


def _update(client: Any, model: Array, labels: tuple[int, int]) -> Array:
    with seed_global_generators(*labels, 1):
        return np.asarray(client.local_update(model.copy()), dtype=np.float64)


def _relative_difference(upload: Array, given: Array) -> float:
    """Return the norm of the difference over the larger norm; infinite if they cannot match."""
    if upload.shape != given.shape or not (np.isfinite(upload).all() and np.isfinite(given).all()):
        return np.inf
    size = max(float(np.linalg.norm(upload)), float(np.linalg.norm(given)))
    return float(np.linalg.norm(upload - given)) / size if size > 0 else 0.0


def _how_apart(upload: Array, given: Array) -> str:
    """Describe the difference of an upload from what its steps give."""
    if upload.shape != given.shape:
        return f"it has shape {upload.shape}, and the steps give {given.shape}"
    apart = _relative_difference(upload, given)
    length = float(given @ given)
    if np.isfinite(apart) and length > 0:
        factor = float(upload @ given) / length
        if _relative_difference(upload, factor * given) <= UPLOAD_TOLERANCE:
            return f"it is {factor:.6g} times that (a factor that is not public?)"
    return f"they differ by {apart:.3g} of their norm"
