"""``dpaudit train --federated``: options, plan, progress and result of a federated run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.commands import Choice
from dpaudit.cli.options import option_name
from dpaudit.cli.printing import print_message, print_text, printable_path, shows_progress
from dpaudit.vocabulary.federation import ORDERS, PARTITIONS, SELECTIONS, STRATEGIES

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from dpaudit.runs.directory import RunDirectory
    from dpaudit.trainer.federated.federation import Federation, PreparedFederation
    from dpaudit.trainer.federated.federation_run import RoundCallback
    from dpaudit.trainer.federated.strategy import RoundResult
    from dpaudit.vocabulary.federation import FederatedConfig
    from dpaudit.workflow.train.settings_layers import SettingsLayer

Options = Mapping[str, Any]


class FederatedSetting(click.Option):
    """An option that is a field of a section of the settings of a federated run.

    Args:
        *args: As for ``click.Option``.
        section: Name of the section in config.toml, such as ``federation``.
        **kwargs: As for ``click.Option``.
    """

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def _setting(section: str, *names: str, **kwargs: Any) -> Any:
    return click.option(*names, cls=FederatedSetting, section=section, **kwargs)


# ruff: noqa: E501  the options are read as a table: one option a line


# One option a line, as in dpaudit/cli/train.py: each is a field of a section of FederatedConfig.
# fmt: off
FEDERATED_OPTIONS = (
    click.option("--federated", type=Choice(STRATEGIES), help="Train a federation by this strategy; the options below that name a federation are for it."),
    _setting("federation", "--participants", type=int, default=4, show_default=True, help="Federation: public number of participants."),
    _setting("federation", "--rounds", type=int, default=10, show_default=True, help="Federation: number of rounds."),
    _setting("federation", "--partition", type=Choice(PARTITIONS), default="iid", show_default=True, help="Federation: how the records are divided among the participants."),
    _setting("federation", "--shards-per-participant", type=int, default=3, show_default=True, help="Federation: label shards of each participant, for shards."),
    _setting("federation", "--dirichlet-alpha", type=float, default=0.5, show_default=True, help="Federation: concentration of the labels, for dirichlet."),
    _setting("federation", "--partition-column", help="Federation: column of the data, for column."),
    _setting("federation", "--records-per-participant", type=int, help="Federation: records that each participant draws, for independent."),
    _setting("federation", "--partition-seed", type=int, default=0, show_default=True, help="Federation: public seed of the partition."),
    _setting("local", "--local-steps", type=int, default=10, show_default=True, help="Federation: steps of each participant in a round."),
    _setting("local", "--server-learning-rate", type=float, default=1.0, show_default=True, help="Federation: factor of the averaged update."),
    _setting("privacy", "--participation-rate", type=float, default=1.0, show_default=True, help="Federation: probability with which a participant joins a round."),
    _setting("privacy", "--max-epsilon", type=float, help="Federation: budget; a participant leaves before the round that would exceed it."),
    _setting("privacy", "--adaptive-clipping/--fixed-clipping", default=False, show_default=True, help="Federation: let the clip norm of updates follow a quantile (dp-fedavg)."),
    _setting("privacy", "--target-quantile", type=float, default=0.5, show_default=True, help="Federation: quantile of update norms that --adaptive-clipping tracks."),
    _setting("privacy", "--quantile-noise", type=float, default=10.0, show_default=True, help="Federation: noise of the count of clipped updates, in participants."),
    _setting("privacy", "--quantile-learning-rate", type=float, default=0.2, show_default=True, help="Federation: step size of the logarithm of the clip norm."),
    _setting("selective", "--upload-fraction", type=float, default=0.1, show_default=True, help="Federation: theta_u of dssgd, the fraction of entries that is uploaded."),
    _setting("selective", "--download-fraction", type=float, default=1.0, show_default=True, help="Federation: theta_d of dssgd, the fraction of parameters that is downloaded."),
    _setting("selective", "--gradient-bound", type=float, default=0.001, show_default=True, help="Federation: gamma of dssgd, the bound of every uploaded entry."),
    _setting("selective", "--threshold", type=float, default=0.0001, show_default=True, help="Federation: tau of dssgd, the threshold of the selection."),
    _setting("selective", "--counter-decay", type=float, default=0.8, show_default=True, help="Federation: beta of dssgd, the factor of the server's counters."),
    _setting("selective", "--order", type=Choice(ORDERS), default="round-robin", show_default=True, help="Federation: order of the participants of dssgd."),
    _setting("selective", "--selection", type=Choice(SELECTIONS), default="largest", show_default=True, help="Federation: what dssgd uploads: the largest entries, or random ones above the threshold."),
    _setting("selective", "--epsilon-per-epoch", type=float, help="Federation: budget of one epoch of dssgd, as published; needs --selection threshold.  [default: no noise]"),
)
# fmt: on

SHARED_SECTIONS = frozenset({"data", "model", "speed"})
"""Sections that runs of one trainer and of federations share, with all their options."""
SHARED_OPTIONS = {
    "target_epsilon": "privacy",
    "noise_multiplier": "privacy",
    "delta": "privacy",
    "clip_norm": "privacy",
    "seed": "privacy",
    "unaccounted": "privacy",
    "sampling_rate": "local",
    "expected_batch_size": "local",
}
"""Further options of a run of one trainer, with their sections in a federation."""
OTHER_OPTIONS = frozenset({"config", "federated", "out", "dry_run", "if_exists"})
"""Options that are no setting, and that every run has."""


def federated_fields(command: click.Command) -> dict[str, tuple[str, str]]:
    """Return section and key, in the settings of a federation, of each option that has them.

    Args:
        command: ``dpaudit train``.

    Returns:
        By the name of the option.
    """
    found: dict[str, tuple[str, str]] = {}
    for one in command.params:
        name, section = str(one.name), getattr(one, "section", None)
        if isinstance(one, FederatedSetting):
            found[name] = (one.section, name)
        elif section in SHARED_SECTIONS:
            found[name] = (str(section), str(getattr(one, "key", name)))
        elif name in SHARED_OPTIONS:
            found[name] = (SHARED_OPTIONS[name], name)
    return found


def require_fitting_options(command: click.Command, given: Set[str], *, federated: bool) -> None:
    """Refuse options of a run of the other kind.

    Args:
        command: ``dpaudit train``.
        given: Names of the options that were given.
        federated: Whether the run is a federation.

    Raises:
        UsageError: If an option does not apply; the message names it.
    """
    fields = federated_fields(command)
    for one in command.params:
        name = str(one.name)
        if name not in given or name in OTHER_OPTIONS:
            continue
        if federated and name not in fields:
            raise click.UsageError(f"{option_name(name)} is no setting of a federated run")
        if not federated and isinstance(one, FederatedSetting):
            raise click.UsageError(f"{option_name(name)} needs --federated STRATEGY")


def option_layer(command: click.Command, options: Options, names: Set[str]) -> SettingsLayer:
    """Return the settings of a federation that some options hold.

    Args:
        command: ``dpaudit train``.
        options: Values of all options by name.
        names: Names of the options to read.

    Returns:
        Settings by section and key.
    """
    layer: dict[str, dict[str, Any]] = {}
    for name, (section, key) in federated_fields(command).items():
        if name in names:
            layer.setdefault(section, {})[key] = options[name]
    if "federated" in names and options["federated"] is not None:
        layer.setdefault("federation", {})["strategy"] = options["federated"]
    source = layer.get("data", {}).get("source", "digits")
    if source != "digits":
        layer["data"]["source"] = os.path.abspath(source)
    return layer


def federated_layers(
    command: click.Command, options: Options, given: Mapping[str, str]
) -> list[tuple[str, SettingsLayer]]:
    """Return the layers of settings of a federated run.

    Args:
        command: ``dpaudit train``.
        options: Values of all options by name.
        given: The source of each option that was given: its variable or the command line.

    Returns:
        Name and content of each layer; later ones override earlier ones.
    """
    from dpaudit.workflow.train.federated_settings import read_federated_file

    layers = [("default", option_layer(command, options, options.keys() - given.keys()))]
    if options["config"] is not None:
        layers.append((str(options["config"]), read_federated_file(options["config"])))
    for source in ("variable", "command line"):
        names = {name for name, own in given.items() if own == source}
        layers.append((source, option_layer(command, options, names)))
    return layers


def config_of_layers(layers: list[tuple[str, SettingsLayer]]) -> FederatedConfig:
    """Merge layers into the settings of a federated run; a target epsilon becomes noise."""
    from dpaudit.workflow.train.federated_checks import require_used_settings
    from dpaudit.workflow.train.federated_settings import (
        build_federated_config,
        merge_federated_settings,
    )

    merged = merge_federated_settings([layer for _, layer in layers])
    require_used_settings(merged, layers[0][1])  # the first one has the defaults
    return build_federated_config(merged)


def print_federated_plan(
    ctx: click.Context, layers: list[tuple[str, SettingsLayer]], out: Path | None, *, new: bool
) -> None:
    """Print what a federated run would do; exit with the verdict of the policy on it, if any.

    Args:
        ctx: The context of the command.
        layers: Layers of the settings.
        out: The run directory; None for the default.
        new: Whether the run directory must not exist.
    """
    from dpaudit.cli.gate import print_plan_verdict
    from dpaudit.report.verdicts.text import federated_plan_text
    from dpaudit.runs.directory import require_absent
    from dpaudit.workflow.run_claims import CLAIM_ACCOUNTANT
    from dpaudit.workflow.train.federated_checks import require_usable_plan
    from dpaudit.workflow.train.federated_plan import (
        has_planned_mechanism,
        planned_federated_claim,
    )
    from dpaudit.workflow.train.federated_settings import federated_origins

    config = config_of_layers(layers)
    require_usable_plan(config)
    path = out or default_out(config)
    if new:
        require_absent(path)
    origins = federated_origins(config, layers)
    claim = None
    if has_planned_mechanism(config):
        claim = planned_federated_claim(config, config.privacy.delta, CLAIM_ACCOUNTANT)
    print_text(federated_plan_text(config, origins, claim))
    print_text(f"dry run: nothing was trained; the run would be {printable_path(path)}")
    if claim is not None:
        print_plan_verdict(ctx, config)


def default_out(config: FederatedConfig) -> Path:
    """Return the run directory of a federated run that names none."""
    data = Path(config.data.source).name.split(".")[0]
    return Path("runs") / f"{data}-{config.federation.strategy}"


def train_federated(config: FederatedConfig, out: Path | None, if_exists: str | None) -> None:
    """Train a federation into a new run directory, and print its result.

    Args:
        config: The settings.
        out: The run directory; None for the default.
        if_exists: ``overwrite``, or None to refuse an existing run.
    """
    from dpaudit.runs.directory import remove_run, require_absent
    from dpaudit.trainer.federated.federation_run import prepare_federation, train_federation
    from dpaudit.workflow.train.federated_checks import require_usable_plan

    path = out or default_out(config)
    if if_exists is None:
        require_absent(path)
    require_usable_plan(config)
    prepared = prepare_federation(config)
    if if_exists == "overwrite":  # only once the settings are known to be usable
        remove_run(path)
    run = _with_progress(config, lambda each: train_federation(prepared, path, each))
    _print_result(run, prepared)


def resume_federated(out: Path) -> None:
    """Continue an interrupted federated run with its own settings, and print its result.

    Args:
        out: The run directory.
    """
    from dpaudit.trainer.federated.federation_run import (
        prepare_federation_resume,
        resume_federation,
    )

    prepared = prepare_federation_resume(out)
    run = _with_progress(prepared.config, lambda each: resume_federation(prepared, out, each))
    _print_result(run, prepared)


def _print_result(run: RunDirectory, prepared: PreparedFederation) -> None:
    """Print claim, epsilon of each participant, accuracy and path of a finished run."""
    from dpaudit.report.descriptions import claim_in_words
    from dpaudit.report.text import participants_text
    from dpaudit.workflow.account import epsilon_answers, request_for_run
    from dpaudit.workflow.train.accuracy import heldout_accuracy
    from dpaudit.workflow.train.finish import finish_and_read_claim

    if run.read_ledger().accounted_ledgers:
        claim = finish_and_read_claim(run, prepared.config.privacy.delta)
        print_text(claim_in_words(claim))
        request = request_for_run(run.path, None)
        if request.federation is not None:
            answers = epsilon_answers(request, claim.accountant)
            silent = request.without_release
            print_text(participants_text(request.federation, answers, silent, request.notes))
    else:
        print_text("no claim: the run adds no noise, so it protects nobody")
    print_text(f"held-out accuracy {heldout_accuracy(run, prepared.split):.1%}")
    print_text(f"wrote {printable_path(run.path)}")


def _with_progress(
    config: FederatedConfig, run: Callable[[RoundCallback], RunDirectory]
) -> RunDirectory:
    """Run with a bar of rounds on standard error; without a terminal, report events alone."""
    from dpaudit.report.descriptions import spent_epsilon_in_words

    events = RoundEvents()
    if not shows_progress():
        return run(events)
    rounds, spent = config.federation.rounds, [0.0]
    bar: ProgressBar[int] = click.progressbar(
        length=rounds,
        label="rounds",
        file=sys.stderr,
        item_show_func=lambda _: spent_epsilon_in_words(spent[0]) if spent[0] else None,
    )
    with bar:

        def show(result: RoundResult, federation: Federation) -> None:
            events(result, federation)
            spent[0] = largest_spent(config, federation)
            bar.update(result.number + 1 - bar.pos)

        return run(show)


def largest_spent(config: FederatedConfig, federation: Federation) -> float:
    """Return the largest upper bound on epsilon of the participants so far; 0 without noise."""
    delta = config.privacy.delta
    return max((one.upper for one in federation.epsilons(delta).values()), default=0.0)


class RoundEvents:
    """Reports each participant that fails, is rejected or leaves, once per round."""

    def __init__(self) -> None:
        self._left: set[int] = set()

    def __call__(self, result: RoundResult, federation: Federation) -> None:
        """Print the events of one round on standard error.

        Args:
            result: What happened in the round.
            federation: Not used.
        """
        for line in self._lines(result):
            print_message(f"round {result.number}: {line}")

    def _lines(self, result: RoundResult) -> Iterator[str]:
        for number, why in result.failed.items():
            yield f"participant {number} failed: {why}"
        for number, why in result.rejected.items():
            yield f"the update of participant {number} was rejected: {why}"
        new = [number for number in result.left if number not in self._left]
        self._left.update(new)
        if new:
            yield f"no budget is left for {', '.join(map(str, new))}"
        if result.ended:
            yield "the run ends here, as nobody has budget for it"
