"""``dpaudit canaries``: canary files for any framework."""

# ruff: noqa: E501  the options are read as a table: one option a line

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.cli.options import TRUST_MODEL_CODE, required, with_options
from dpaudit.cli.printing import named, say

KINDS = ("mislabelled", "blank", "out-of-distribution", "crafted", "secrets", "dummy")
PATH = click.Path(path_type=Path)

# fmt: off
MAKE_OPTIONS = (
    click.option("--kind", type=click.Choice(KINDS), default="mislabelled", show_default=True, help="Records, sentences with a secret, or numbers of dummy parameters."),
    click.option("--count", type=int, default=1000, show_default=True),
    click.option("--data", default="digits", show_default=True, help="Records: canaries are made of held-out ones."),
    click.option("--label", help="Column of the label in a table.  [default: label, else the last]"),
    click.option("--checkpoint", type=PATH, help="Model of torch that crafted canaries are crafted against."),
    TRUST_MODEL_CODE,
    click.option("--model", help="package.module:factory of the weights in --checkpoint."),
    click.option("--template", help="Sentence with {secret}, and {user} if wanted."),
    click.option("--references", type=int, default=1000, show_default=True, help="Sentences more, never trained on, to rank secrets among."),
    click.option("--text", type=PATH, help="Training text that secrets are mixed into, a line a record."),
    click.option("--training-file", type=PATH, help="Write all training records with the included canaries among them here."),
    click.option("-o", "--output", type=PATH, default=Path("canaries.npz"), show_default=True, help="The trainer's file; the auditor's is NAME.secret.npz beside it."),
)
# fmt: on


@click.group()
def canaries() -> None:
    """Make canaries for a trainer of any framework; read them with ``dpaudit audit``."""


@canaries.command()
@with_options(MAKE_OPTIONS)
def make(**options: Any) -> None:
    """Make canaries and toss a fair coin for each.

    The trainer's file holds the included ones alone; keep the other from whoever trains.

    \b
    dpaudit canaries make --kind mislabelled --data mnist.npz --training-file train.npz
    dpaudit audit --canaries canaries.npz --scores scores.csv --claim-epsilon 3
    """
    planted = _MAKERS.get(options["kind"], _inputs)(options)
    say(
        f"wrote {named(options['output'])}: {int(planted.included.sum())} of {len(planted.ids)} "
        f"{planted.kind} canaries are in; all of them with their bits: {named(_secret(options['output']))}"
    )


def _secret(path: Path) -> Path:
    from dpaudit.workflow.planted import secret_path

    return secret_path(path)


def _inputs(options: dict[str, Any]) -> Any:
    from dpaudit.vocabulary.settings import DataSettings
    from dpaudit.workflow.planting import INPUT_KINDS, plant_inputs

    data = DataSettings(source=options["data"], label=options["label"])
    if options["kind"] == "crafted":
        from dpaudit.workflow.crafting import crafted_against

        make = crafted_against(
            required("checkpoint", options["checkpoint"]),
            options["model"],
            trust_model_code=options["trust_model_code"],
        )
    else:
        make = INPUT_KINDS[options["kind"]]
    return plant_inputs(
        options["kind"],
        options["count"],
        data,
        options["output"],
        training_file=options["training_file"],
        make=make,
    )


def _secrets(options: dict[str, Any]) -> Any:
    from dpaudit.attacks.canaries.secrets import TEMPLATE
    from dpaudit.workflow.planting import plant_secrets

    return plant_secrets(
        options["count"],
        options["output"],
        references=options["references"],
        template=options["template"] or TEMPLATE,
        text=options["text"],
        training_file=options["training_file"],
    )


def _dummies(options: dict[str, Any]) -> Any:
    from dpaudit.workflow.planting import plant_dummies

    return plant_dummies(options["count"], options["output"])


_MAKERS = {"secrets": _secrets, "dummy": _dummies}
