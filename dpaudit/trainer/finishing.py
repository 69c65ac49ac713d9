"""The end of a loop of one's own: its ledger's folder becomes a run directory."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from dpaudit.accountants.answers import claim_of
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import sha256, sync, write_json
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.trainer.sharding import is_sharded, whole
from dpaudit.vocabulary.errors import InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import LedgerHeader

ACCOUNTANT = "pld"


def run_of(ledger: Path | None) -> RunDirectory:
    """Return the run directory that a ledger is in.

    Raises:
        InvalidArgument: there is no ledger's file, or it has another name.
    """
    if ledger is None or RunDirectory(ledger.parent).ledger != ledger:
        raise InvalidArgument(
            "ledger", None if ledger is None else str(ledger), "runs/NAME/ledger.jsonl, given "
            "to make_private: its folder becomes the run directory",
        )  # fmt: skip
    return RunDirectory(ledger.parent)


def new_ledger(path: Path, header: LedgerHeader) -> LedgerWriter:
    """Begin a ledger; its folder is made where it is missing.

    Raises:
        InvalidArgument: the folder cannot be made.
        RunExists: the ledger is there, or another file of an earlier run.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = f"in a folder that can be made ({error.strerror})"
        raise InvalidArgument("ledger", str(path), allowed) from error
    run = RunDirectory(path.parent)
    left = [file for file in run.own_files if file.exists() and run.ledger == path]
    if left:
        raise RunExists(f"{left[0]} is of an earlier run: choose another folder, or remove it")
    return LedgerWriter.create(path, header)


def shards_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a sharded model put together, for which all ranks have to ask.

    Nothing is returned of any other model.
    """
    weights = model.state_dict()
    if not any(is_sharded(tensor) for tensor in weights.values()):
        return {}
    return {name: whole(tensor).contiguous() for name, tensor in weights.items()}


def finish_run(
    run: RunDirectory,
    model: nn.Module,
    shards: dict[str, Tensor],
    ledger: LedgerWriter,
    delta: float,
) -> None:
    """Write the weights, seal the ledger over them and write the claim."""
    # First, so that what cannot be priced is refused before anything is written.
    claim = claim_of(run.read_ledger(), delta, ACCOUNTANT)
    if shards:
        save_file(shards, run.model)
    else:
        save_model(model, str(run.model))
    sync(run.model)
    ledger.seal({run.model.name: sha256(run.model)})
    write_json(run.claim, replace(claim, ledger_head=run.read_finished().head))
