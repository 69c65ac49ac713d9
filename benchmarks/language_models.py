"""Attacks on a small transformer that was trained on plays of Shakespeare, with and without DP.

    python benchmarks/language_models.py                   # the tables, about 200 CPU seconds
    python benchmarks/language_models.py --json benchmarks/results/language-models-DATE.json

One record is a block of 64 bytes. Members, non-members and the reference model's own records are a
random choice of all blocks, so that all have one distribution. Both targets are trained on the
same records, with the same canaries, model, optimizer, batch size and number of epochs. They differ
in clipping, noise and the sampling of batches. Three kinds of canaries are included by fair coins:
new tokens, secrets, and sentences drawn from the reference model at high temperature. The intervals
of all attacks on one target hold together. CPU time is that of the process.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import importlib.metadata
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side.tables import table, titled

import dpaudit
from dpaudit.attacks.canaries import CanaryAssignment, assign_canaries, exposure, make_secrets
from dpaudit.attacks.canaries.text_canaries import synthetic_sentences
from dpaudit.attacks.language_models import SamplingScheme, TextRecords, TokenSignals, zlib_bytes
from dpaudit.attacks.language_models.canary_scores import sentence_scores
from dpaudit.attacks.language_models.text_encoders import ByteEncoder
from dpaudit.attacks.language_models.torch_signals import model_signals, sample_sequences
from dpaudit.attacks.one_run import audit_scores
from dpaudit.trainer import make_private
from dpaudit.trainer.models.language_models import (
    evaluate_language_model,
    make_language_model,
    mean_token_losses,
)
from dpaudit.trainer.token_data import TokenRecords
from dpaudit.vocabulary.audit import AttackReport, BoundKind
from dpaudit.workflow.attack.text_attacks import (
    ExtractionSettings,
    TextAttackSettings,
    evaluate_texts,
)

DATA = Path(os.environ.get("DPAUDIT_DATA", "../shared/data"))
LENGTH, BYTES = 64, 256
NONMEMBERS, PUBLIC = 2000, 400
CANARIES = 100  # of each kind
REFERENCES = 1000  # secrets that rank the included ones
PREFIX = 4  # bytes before a new token
TEMPERATURE, PROMPT = 1.2, 4
SUFFIX, QUERIES = 16, 100
EPSILON, DELTA, CONFIDENCE = 8.0, 1e-5, 0.95
INTERVAL_CONFIDENCE = 1 - (1 - CONFIDENCE) / 6  # six attacks: their intervals hold together
CHANCE, TIMES_CHANCE = 0.01, 5
BATCH = 32

Tokens = list[NDArray[np.int64]]


@dataclass(frozen=True)
class Settings:
    """How targets are trained."""

    members: int
    epochs: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Canaries:
    """The canaries of one kind, as tokens, and what to score of them."""

    kind: str
    assignment: CanaryAssignment[Any]
    tokens: Tokens
    references: Tokens

    def scores(self, signals: tuple[TokenSignals, ...]) -> NDArray[np.float64]:
        """Return the log-probability of the new token, or of the whole sentence."""
        if self.kind == "new tokens":
            return np.array([one.log_probabilities[-1] for one in signals])
        return sentence_scores(signals)


def padded(sequences: Tokens) -> TokenRecords:
    """Return sequences as records."""
    tokens = np.zeros((len(sequences), LENGTH), np.int64)
    for row, one in zip(tokens, sequences, strict=True):
        row[: len(one)] = one
    return TokenRecords(tokens, np.array([len(one) for one in sequences]))


def draw_blocks(settings: Settings) -> tuple[Tokens, Tokens, Tokens]:
    """Return members, non-members and public blocks, at random."""
    raw = gzip.decompress((DATA / "tinyshakespeare.txt.gz").read_bytes())
    whole = np.frombuffer(raw, np.uint8).astype(np.int64)
    blocks = whole[: len(whole) // LENGTH * LENGTH].reshape(-1, LENGTH)
    order = np.random.default_rng(settings.seed).permutation(len(blocks))
    ends = np.cumsum([settings.members, NONMEMBERS, PUBLIC])
    members, others, public = np.split(blocks[order[: ends[-1]]], ends[:2])
    return list(members), list(others), list(public)


def train(model: torch.nn.Module, records: TokenRecords, settings: Settings, epochs: int) -> None:
    """Train without privacy, by Adam on shuffled batches."""
    rng = np.random.default_rng([settings.seed, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    tokens, lengths = torch.from_numpy(records.tokens), torch.from_numpy(records.lengths)
    model.train()
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(records)), len(records) // BATCH):
            loss = mean_token_losses(model, (tokens[batch], lengths[batch])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def train_privately(model: torch.nn.Module, records: TokenRecords, settings: Settings) -> float:
    """Train by DP-SGD with Adam for as many epochs; return the epsilon of the accountant."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    data = (torch.from_numpy(records.tokens), torch.from_numpy(records.lengths))
    private = make_private(
        model, optimizer, data, target_epsilon=EPSILON, delta=DELTA, epochs=settings.epochs,
        dataset_size=len(records), expected_batch_size=BATCH, seed=settings.seed,
    )  # fmt: skip
    model.train()
    with private:
        for batch in private.batches():
            private.step(mean_token_losses, batch)
        return private.epsilon().upper


def make_canaries(reference: torch.nn.Module, public: Tokens, settings: Settings) -> list[Canaries]:
    """Return canaries of three kinds with their coins."""
    rng = np.random.default_rng([settings.seed, 2])
    prefixes = [public[row][:PREFIX] for row in range(CANARIES)]
    new = [np.append(prefix, BYTES + row) for row, prefix in enumerate(prefixes)]
    secrets = make_secrets(CANARIES, rng, references=REFERENCES)

    def sample(count: int, number: int) -> list[str]:
        generator = torch.Generator().manual_seed(settings.seed + number)
        prompts = [public[-1 - row % len(public)][:PROMPT] for row in range(count)]
        drawn = sample_sequences(
            lambda tokens: reference(tokens)[..., :BYTES], prompts, length=LENGTH - PROMPT,
            scheme=SamplingScheme(TEMPERATURE), generator=generator,
        )  # fmt: skip
        return [bytes(one.tolist()).decode("latin-1") for one in drawn]

    synthetic = synthetic_sentences(CANARIES, sample)

    def encoded(sentences: tuple[str, ...]) -> Tokens:
        return [np.frombuffer(one.encode("latin-1"), np.uint8).astype(np.int64)
                for one in sentences]  # fmt: skip

    return [
        Canaries("new tokens", assign_canaries(np.arange(CANARIES), rng), new, []),
        Canaries("secrets", assign_canaries(secrets, rng), encoded(secrets.sentences),
                 encoded(secrets.references)),
        Canaries("synthetic", assign_canaries(synthetic, rng), encoded(synthetic.sentences), []),
    ]  # fmt: skip


def signals_of(model: torch.nn.Module, sequences: Tokens) -> tuple[TokenSignals, ...]:
    """Return the signals of sequences, with the compressed size of their bytes."""
    model.eval()
    found = model_signals(model, sequences)
    return tuple(
        replace(one, compressed_bytes=zlib_bytes(bytes(int(t) % BYTES for t in tokens)))
        for one, tokens in zip(found, sequences, strict=True)
    )


def attack(
    model: torch.nn.Module, reference: torch.nn.Module, members: Tokens, others: Tokens
) -> AttackReport:
    """Return all attacks, the baselines and the extraction."""
    sequences = [*members, *others]
    of_reference = signals_of(reference, sequences)
    signals = [
        replace(own, reference=other.log_probabilities)
        for own, other in zip(signals_of(model, sequences), of_reference, strict=True)
    ]
    texts = tuple(ByteEncoder().decode(one.tolist()) for one in sequences)
    records = TextRecords(
        tuple(map(str, range(len(texts)))), texts, np.arange(len(texts)) < len(members)
    )
    asked = TextAttackSettings(
        confidence=INTERVAL_CONFIDENCE, extraction=ExtractionSettings(SUFFIX, QUERIES)
    )
    return evaluate_texts("", records, signals, asked).report


def canary_rows(model: torch.nn.Module, canaries: list[Canaries]) -> list[dict[str, Any]]:
    """Return the one-run bound of each kind of canary, and the exposure of secrets."""
    found = []
    for some in canaries:
        scores = some.scores(signals_of(model, some.tokens))
        included = some.assignment.included
        bound = audit_scores(scores, included, delta=DELTA, confidence=CONFIDENCE,
                             claimed_epsilon=EPSILON, fair_coins=BoundKind.CERTIFIED)  # fmt: skip
        row: dict[str, Any] = {
            "kind": some.kind, "canaries": len(scores), "included": int(included.sum()),
            "guesses": bound.guesses, "correct": bound.correct,
            "epsilon_lower": bound.epsilon_lower, "greatest_epsilon": bound.greatest_epsilon,
        }  # fmt: skip
        if some.references:
            ranked = sentence_scores(signals_of(model, some.references))
            bits = exposure(scores[included], ranked, some.assignment.canaries.space)
            row |= {"exposure_mean": float(bits.mean()), "exposure_max": float(bits.max())}
        found.append(row)
    return found


def measure(settings: Settings) -> dict[str, Any]:
    """Train the reference and both targets, and attack the targets."""
    members, others, public = draw_blocks(settings)
    vocabulary = BYTES + CANARIES
    start = time.process_time()
    reference = make_language_model("gpt2-tiny", LENGTH, vocabulary, settings.seed + 1)
    train(reference, padded(public), settings, max(1, settings.epochs // 2))
    canaries = make_canaries(reference, public, settings)
    included = [
        some.tokens[row] for some in canaries for row in np.flatnonzero(some.assignment.included)
    ]
    records = padded([*members, *included])
    found: dict[str, Any] = {"records": len(records), "targets": []}
    print(f"reference: {time.process_time() - start:.0f} CPU seconds", file=sys.stderr, flush=True)
    for name in ("without DP", f"epsilon {EPSILON:g}"):
        start = time.process_time()
        model = make_language_model("gpt2-tiny", LENGTH, vocabulary, settings.seed)
        claimed = None
        if name == "without DP":
            train(model, records, settings, settings.epochs)
        else:
            claimed = train_privately(model, records, settings)
        report = attack(model, reference, members, others)
        found["targets"].append({
            "target": name,
            "epsilon": claimed,
            "loss_of_members": evaluate_language_model(model, padded(members)).loss,
            "loss_of_nonmembers": evaluate_language_model(model, padded(others)).loss,
            "attacks": [_attack_row(one) for one in report.membership],
            "baselines": [{"name": one.name, "auc": one.auc, "p_value": one.p_value}
                          for one in report.baselines],
            "extraction": [
                {"name": one.name, "members": [one.members.extracted, one.members.texts],
                 "nonmembers": [one.nonmembers.extracted, one.nonmembers.texts],
                 "interval": [one.members.interval.lower, one.members.interval.upper]}
                for one in report.extraction
            ],
            "canaries": canary_rows(model, canaries),
            "cpu_seconds": time.process_time() - start,
        })  # fmt: skip
        print(f"{name}: {found['targets'][-1]['cpu_seconds']:.0f} CPU seconds", file=sys.stderr,
              flush=True)  # fmt: skip
    return found


def _attack_row(one: Any) -> dict[str, Any]:
    rate = next(rate for rate in one.tpr_at_fpr if rate.fpr == CHANCE)
    return {
        "attack": one.attack, "auc": one.auc, "tpr": rate.tpr,
        "interval": [rate.interval.lower, rate.interval.upper],
        "inconclusive": one.inconclusive,
    }  # fmt: skip


def show(found: dict[str, Any]) -> str:
    """Return the tables."""
    blocks = []
    for target in found["targets"]:
        title = f"{target['target']}: loss of members {target['loss_of_members']:.3f}, of others " \
                f"{target['loss_of_nonmembers']:.3f} nats per byte"  # fmt: skip
        attacks = table(
            ("attack", "AUC", "TPR at 1% FPR", "interval"),
            [(row["attack"], f"{row['auc']:.3f}", f"{100 * row['tpr']:.2f}%",
              f"{100 * row['interval'][0]:.2f}% to {100 * row['interval'][1]:.2f}%")
             for row in target["attacks"]],
        )  # fmt: skip
        canaries = table(
            ("canaries", "correct guesses", "epsilon, lower bound", "largest possible", "exposure"),
            [(row["kind"], f"{row['correct']} of {row['guesses']}", f"{row['epsilon_lower']:.2f}",
              f"{row['greatest_epsilon']:.2f}",
              f"{row['exposure_mean']:.2f} bits" if "exposure_mean" in row else "-")
             for row in target["canaries"]],
        )  # fmt: skip
        extraction = table(
            ("extraction", "members", "non-members"),
            [(row["name"], "{} of {}".format(*row["members"]),
              "{} of {}".format(*row["nonmembers"])) for row in target["extraction"]],
        )  # fmt: skip
        blocks.append(titled(title, attacks, canaries, extraction))
    return "\n\n".join(blocks)


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Return whether each target of the design is met."""
    plain, private = found["targets"]
    best = max(row["tpr"] for row in plain["attacks"])
    return {
        f"without DP, TPR at least {TIMES_CHANCE} times chance": best >= TIMES_CHANCE * CHANCE,
        "with DP, chance inside every interval": all(
            row["interval"][0] <= CHANCE <= row["interval"][1] for row in private["attacks"]
        ),
        "with DP, no bound above the claim": all(
            row["epsilon_lower"] <= EPSILON for row in private["canaries"]
        ),
    }


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = vars(parser.parse_args())
    out = asked.pop("json")
    torch.set_num_threads(1)
    found = measure(Settings(**asked))
    met = verdicts(found)
    print(show(found))
    print("\n" + "\n".join(f"{'met' if good else 'NOT met'}: {name}" for name, good in met.items()))
    if out is not None:
        document = {
            "date": datetime.date.today().isoformat(), "dpaudit": dpaudit.__version__,
            "torch": importlib.metadata.version("torch"), "settings": asked, **found, "met": met,
        }  # fmt: skip
        out.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
