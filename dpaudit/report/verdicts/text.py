"""A verdict, a policy, and the comparison of two runs as text for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from dpaudit.gate.policy_layers import DEFAULT_ORIGIN, LoadedPolicy, policy_values
from dpaudit.gate.run_differences import DifferenceCost, RunComparison
from dpaudit.report.descriptions import (
    UNIT_DESCRIPTIONS,
    claim_in_words,
    noise_in_words,
    observers_in_words,
)
from dpaudit.report.text import one_line, printable_name, table_lines
from dpaudit.report.verdicts.gate_result import (
    rule_label,
    rule_reason,
    shown_rules,
    verdict_facts,
    verdict_headline,
)
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.mechanism_words import mechanism_in_words
from dpaudit.vocabulary.privacy_terms import Unit
from dpaudit.vocabulary.rounding import round_down, round_nearest, round_up
from dpaudit.vocabulary.run_overview import LedgerSummary, RunList, RunOverview, RunSummary
from dpaudit.vocabulary.settings import RunConfig
from dpaudit.vocabulary.verdict import Verdict


def plan_verdict_text(verdict: Verdict) -> str:
    """Write a verdict on plans, of which nothing was trained, as text for the terminal.

    Args:
        verdict: The outcome of every rule.

    Returns:
        The outcome of the plans, and every rule with its reason.
    """
    _, *rows = verdict_text(verdict).split("\n")
    return "\n".join([f"{verdict.outcome.value} (of plans: nothing was trained)", *rows])


def verdict_text(verdict: Verdict) -> str:
    """Write a verdict as text for the terminal.

    Args:
        verdict: The outcome of every rule.

    Returns:
        The outcome, every rule with its reason, then warnings, claim and evidence.
    """
    rows = [
        (rule_label(rule), one_line(rule.rule), one_line(rule_reason(rule)))
        for rule in shown_rules(verdict)
    ]
    facts = [(name, one_line(value)) for name, value in verdict_facts(verdict)]
    warnings = [("warning", one_line(warning)) for warning in verdict.warnings]
    below = [*warnings, *facts]
    more = ["", *table_lines(below)] if below else []
    return "\n".join([verdict_headline(verdict), *table_lines(rows), *more])


# The policy in force, for the terminal.


def policy_text(loaded: LoadedPolicy) -> str:
    """Format the policy in force as one row per key.

    Args:
        loaded: The policy.

    Returns:
        Every key with its value as TOML, defaults included.
    """
    return "\n".join(
        table_lines([(key, toml_value(value)) for key, value in policy_values(loaded.policy)])
    )


def policy_with_origins(loaded: LoadedPolicy) -> str:
    """Format the policy in force with the origin of each value.

    Args:
        loaded: The policy and the origins of its keys.

    Returns:
        Every key with its value as TOML, and the file and line, option or default that set it.
    """
    rows = [
        (key, toml_value(value), str(loaded.origins.get(key, DEFAULT_ORIGIN)))
        for key, value in policy_values(loaded.policy)
    ]
    return "\n".join(table_lines(rows))


def toml_value(value: Any) -> str:
    """Format a value of a policy as TOML.

    Args:
        value: A string, number, boolean, list or table; None where the policy sets none.

    Returns:
        The value; "-" for None.
    """
    if value is None:
        return "-"
    if isinstance(value, dict):
        inside = ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    return json.dumps(value)


def _participants(ledger: LedgerSummary) -> str:
    """State the number of participants, and of the releases in their ledgers."""
    counts = ledger.participants.values()
    if not counts:
        return "no ledger of a participant"
    least, most = min(counts), max(counts)
    each = f"{least}" if least == most else f"{least} to {most}"
    return f"{len(counts)}, with {each} releases each"


# Comparison of two runs as text for the terminal.


def comparison_text(found: RunComparison) -> str:
    """Format the results of both runs in columns, then their differences by cause.

    Args:
        found: Both runs and the cost of each difference.

    Returns:
        Lines for the terminal, without control characters.
    """
    before, after = _run_figures(found.before), _run_figures(found.after)
    rows = [("", found.before.run, found.after.run)]
    rows += [
        (name, before.get(name, "not measured"), after.get(name, "not measured"))
        for name in dict.fromkeys((*before, *after))
    ]
    causes = [line for cost in found.costs for line in _cost_lines(cost)]
    shown = [tuple(one_line(cell) for cell in row) for row in rows]
    return "\n".join([*table_lines(shown), "", *(causes or ["no differences"])])


def _run_figures(run: Baseline) -> dict[str, str]:
    claim = run.claim
    figures = {
        f"epsilon, upper bound (delta {claim.delta:g}, {claim.accountant})": round_up(
            claim.epsilon.upper
        ),
        **{
            f"epsilon, lower bound ({bound.kind.value}: {bound.name})": round_down(
                bound.epsilon_lower
            )
            for bound in run.bounds
        },
        **{
            f"TPR of {rate.attack} at FPR {rate.fpr:g}, upper bound": round_up(rate.tpr.upper)
            for rate in run.rates
        },
    }
    if run.heldout_accuracy is not None:
        figures["held-out accuracy"] = round_nearest(run.heldout_accuracy)
    if run.heldout_loss is not None:
        figures["held-out loss, nats per token"] = round_nearest(run.heldout_loss)
    return figures


def _cost_lines(cost: DifferenceCost) -> Iterator[str]:
    yield one_line(str(cost.difference))
    if cost.epsilon is not None:
        yield f"    with this change alone: upper bound on epsilon {round_up(cost.epsilon)}"


# Overview of runs, and the plan of one, as text for the terminal.

LIST_HEADING = ("run", "state", "steps", "epsilon, upper bound", "delta", "verdict")


def run_list_text(found: RunList) -> str:
    """Format one row per run, then the problem of each run that has one.

    Args:
        found: The runs of a folder.

    Returns:
        Lines for the terminal.
    """
    lines = table_lines([LIST_HEADING, *(_row(one) for one in found.runs)])
    problems = [
        f"{printable_name(one.run)}: {one_line(one.problem)}" for one in found.runs if one.problem
    ]
    return "\n".join([*lines, *(["", *problems] if problems else [])])


def _row(one: RunSummary) -> tuple[str, ...]:
    return (
        printable_name(one.run),
        one.state.value,
        _steps(one),
        "-" if one.epsilon_upper is None else round_up(one.epsilon_upper),
        "-" if one.delta is None else f"{one.delta:g}",
        _outcome(one),
    )


def _outcome(one: RunSummary) -> str:
    """Return the verdict of a run, and whether it is by another policy than the project's."""
    if one.outcome is None:
        return "-"
    return f"{one.outcome.value} (another policy)" if one.other_policy else one.outcome.value


def _steps(one: RunSummary) -> str:
    if one.steps is None:
        return "-"
    return f"{one.steps}" + ("" if one.planned_steps is None else f" of {one.planned_steps}")


def run_overview_text(found: RunOverview) -> str:
    """Format the parts of one run under headings.

    Args:
        found: The parts of a run that can be read.

    Returns:
        Lines for the terminal.
    """
    of_ledger = None if found.ledger is None else found.ledger.federation
    federated = found.federated_settings is not None or of_ledger is not None
    progress = "rounds" if federated else "steps"
    parts = [_section("run", list(_summary_rows(found.summary, progress)))]
    if found.problems:
        parts.append("\n".join(["problems", *(f"  {one_line(one)}" for one in found.problems)]))
    settings = found.settings or found.federated_settings
    if settings is not None:
        parts.append(_section("settings", list(_setting_rows(settings))))
    if found.ledger is not None:
        parts.append(_section("ledger", list(_ledger_rows(found))))
    parts.append(_section("files", [(one.name, f"{one.size} bytes") for one in found.files]))
    claim = "no verified claim" if found.claim is None else claim_in_words(found.claim)
    parts.append(f"claim\n  {claim}")
    verdict = "no current verdict: dpaudit gate RUN writes one"
    if found.verdict is not None:
        verdict = verdict_text(found.verdict).replace("\n", "\n  ")
    parts.append(f"verdict\n  {verdict}")
    return "\n\n".join(parts)


def _section(heading: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([heading, *(f"  {line}" for line in table_lines(rows))]) if rows else heading


def _summary_rows(one: RunSummary, progress: str) -> Iterator[tuple[str, str]]:
    yield "name", printable_name(one.run)
    yield "state", one.state.value
    yield progress, _steps(one)
    if one.epsilon_upper is not None:
        bound = f"upper bound {round_up(one.epsilon_upper)} at delta {one.delta:g}"
        yield "epsilon of the recorded releases", bound


def _setting_rows(settings: RunConfig | FederatedConfig) -> Iterator[tuple[str, str]]:
    for section, values in msgspec.to_builtins(settings).items():
        if isinstance(values, dict):
            for name, value in values.items():
                if value is not None:
                    yield f"{section}.{name}", _value(value)
        elif section == "preset" and values is not None:
            yield section, _value(values)


def training_plan_text(settings: RunConfig, origins: Mapping[str, str], claim: Claim) -> str:
    """Format the settings of a planned run with their origins, and its epsilon.

    Args:
        settings: The settings that the run would have.
        origins: Where each setting comes from, by ``section.key``.
        claim: The claim that the run would make.

    Returns:
        Lines for the terminal.
    """
    rows = [(name, value, origins.get(name, "")) for name, value in _setting_rows(settings)]
    privacy = settings.privacy
    plan = [
        ("planned steps", str(privacy.steps)),
        ("noise multiplier", f"{privacy.noise_multiplier!r}"),
        (
            "epsilon",
            f"upper bound {round_up(claim.epsilon.upper)} at delta {claim.delta:g} "
            f"({claim.accountant} accountant, {claim.adjacency.value})",
        ),
        ("not in the claim", one_line(", ".join(claim.unaccounted)) or "nothing declared"),
    ]
    table = table_lines([("setting", "value", "origin"), *rows])
    return "\n".join([*table, "", *table_lines(plan)])


def federated_plan_text(
    settings: FederatedConfig, origins: Mapping[str, str], claim: Claim | None
) -> str:
    """Format the settings of a planned federation with their origins, and its epsilon.

    Args:
        settings: The settings that the run would have.
        origins: Where each setting comes from, by ``section.key``.
        claim: The claim that the run would make; None where it is not known in advance.

    Returns:
        Lines for the terminal.
    """
    rows = [(name, value, origins.get(name, "")) for name, value in _setting_rows(settings)]
    federation, privacy = settings.federation, settings.privacy
    epsilon = "not known before the run"
    if not settings.adds_noise:
        epsilon = "no claim: the run would add no noise, so it would protect nobody"
    if claim is not None:
        joins = "" if claim.unit is Unit.PARTICIPANT else " if a participant joins every round"
        epsilon = (
            f"upper bound {round_up(claim.epsilon.upper)} at delta {claim.delta:g} for "
            f"{UNIT_DESCRIPTIONS[claim.unit]}{joins} "
            f"({claim.accountant} accountant, {claim.adjacency.value})"
        )
    plan = [
        ("planned rounds", str(federation.rounds)),
        _noise_row(settings),
        ("epsilon", epsilon),
        *([("budget", f"{privacy.max_epsilon:g}")] if privacy.max_epsilon is not None else []),
        ("not in the claim", one_line(", ".join(privacy.unaccounted)) or "nothing declared"),
    ]
    table = table_lines([("setting", "value", "origin"), *rows])
    return "\n".join([*table, "", *table_lines(plan)])


def _noise_row(settings: FederatedConfig) -> tuple[str, str]:
    """Return name and value of what sets the noise of a federation."""
    per_epoch = settings.selective.epsilon_per_epoch
    if per_epoch is not None:  # of dssgd as published, which has no noise multiplier
        return "published noise", f"epsilon {per_epoch:g} per epoch; it is no bound for the run"
    return "noise multiplier", f"{settings.privacy.noise_multiplier!r}"


def _value(value: Any) -> str:
    return (
        one_line(value) if isinstance(value, str) else one_line(msgspec.json.encode(value).decode())
    )


def _ledger_rows(found: RunOverview) -> Iterator[tuple[str, str]]:
    ledger = found.ledger
    if ledger is None:
        return
    yield "releases", str(ledger.releases)
    if ledger.mechanism is not None:
        yield "mechanism", mechanism_in_words(ledger.mechanism)
    yield "adjacency", ledger.adjacency.value
    yield "unit", ledger.unit.value
    yield "sampling", ledger.sampling.value
    yield "randomness", ledger.randomness.value
    yield "noise", noise_in_words(ledger.noise)
    yield "clip norm", f"{ledger.clip_norm:g}"
    if ledger.federation is not None:
        yield "strategy", one_line(ledger.federation.strategy)
        yield "participants", _participants(ledger)
        yield "protects against", observers_in_words(ledger.federation)
    if ledger.spot_checks:
        yield "gradients", ledger.spot_checks
    yield "unaccounted", one_line(", ".join(ledger.unaccounted)) or "nothing"
    yield "hash of the last line", ledger.head
