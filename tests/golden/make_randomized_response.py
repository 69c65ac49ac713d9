"""Make randomized_response.json: exact binomial sums, neighbors that replace one record.

After T yes-or-no answers, each true with probability p, the loss is (2 k - T) log(p/(1-p))
where k is binomial. Between two neighboring losses delta is linear in e^epsilon:

    delta(epsilon) = sum_{j >= k} P_j - e^epsilon sum_{j >= k} Q_j,

so epsilon(delta) is solved for in closed form, piece by piece.
"""

from __future__ import annotations

import golden_file
from mpmath import mp, mpf

mp.dps = 60

TRUTHS = (0.6, 0.75)
TIMES = (1, 2, 10, 100, 1000)
DELTAS = (1e-3, 1e-6, 1e-12, 1e-30)


def epsilon_of(delta: float, truth: mpf, times: int) -> mpf:
    step = mp.log(truth / (1 - truth))
    seen, unseen = mpf(0), mpf(0)
    for k in range(times, -1, -1):
        seen += mp.binomial(times, k) * truth**k * (1 - truth) ** (times - k)
        unseen += mp.binomial(times, k) * truth ** (times - k) * (1 - truth) ** k
        if seen <= delta:
            continue
        epsilon = mp.log((seen - mpf(delta)) / unseen)
        if epsilon >= (2 * (k - 1) - times) * step:  # within this piece
            return max(mpf(0), epsilon)
    return mpf(0)


def main() -> None:
    values: list[dict[str, object]] = [
        {
            "truth_probability": truth,
            "times": times,
            "at_delta": delta,
            "epsilon": golden_file.digits(epsilon_of(delta, mpf(truth), times)),
        }
        for truth in TRUTHS
        for times in TIMES
        for delta in DELTAS
    ]
    golden_file.write(__file__, "randomized response, exact binomial sums", values)


if __name__ == "__main__":
    main()
