"""``PrivateTrainer`` against the real ``Trainer`` of transformers."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from places import ROOT
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer import make_private
from dpaudit.trainer.integrations import PrivateTrainer
from dpaudit.trainer.integrations.training_arguments import TRAINING_ARGUMENTS, privacy_settings
from dpaudit.vocabulary.errors import InvalidArgument, UnrecordedChange

WORDS, RECORDS = 11, 48
PRIVACY = {"noise_multiplier": 1.0, "dataset_size": RECORDS, "delta": 1e-5, "seed": 4}


def model(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def records() -> list[dict[str, Tensor]]:
    rows = torch.randint(WORDS, (RECORDS, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    usual = {
        "per_device_train_batch_size": 6, "num_train_epochs": 2, "max_grad_norm": 0.0,
        "optim": "sgd", "learning_rate": 0.5, "save_strategy": "no", "logging_steps": 4,
        "report_to": [], "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **{**usual, **options})


def trainer(folder: Path, privacy: dict[str, Any] | None = None, **options: Any) -> PrivateTrainer:
    own = {"train_dataset", "eval_dataset", "compute_loss_func", "per_record_loss", "max_epsilon"}
    own |= {"data_collator", "callbacks", "model_init"}
    given = {"train_dataset": records()} | {n: v for n, v in options.items() if n in own}
    others = {name: value for name, value in options.items() if name not in own}
    network = None if "model_init" in options else model()
    return PrivateTrainer(
        network, arguments(folder, **others), privacy={**PRIVACY, **(privacy or {})}, **given
    )


def weights(network: nn.Module) -> Tensor:
    return torch.cat([part.detach().flatten() for part in network.parameters()])


def test_steps_are_those_of_a_loop_of_your_own(tmp_path: Path) -> None:
    """Of the same key, on losses that the model computes of each record alone."""
    options = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"}
    private_trainer = trainer(tmp_path, num_train_epochs=1, **options)
    private_trainer.train()
    network = model()
    private = make_private(
        network, torch.optim.SGD(network.parameters(), lr=0.5), records(), epochs=1,
        expected_batch_size=12, **PRIVACY,
    )  # fmt: skip

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        rows = zip(batch["input_ids"].split(1), batch["labels"].split(1), strict=True)
        return torch.stack([network(input_ids=row, labels=own).loss for row, own in rows])

    for batch in private.batches():
        private.step(loss, batch)
    assert private.steps == private_trainer.state.global_step == 4
    torch.testing.assert_close(weights(private_trainer.model), weights(network))
    assert not torch.equal(weights(network), weights(model()))
    assert private_trainer.private.step_settings.physical_batch_size == 6


def test_logs_have_epsilon_and_nothing_of_the_records_without_noise(tmp_path: Path) -> None:
    private_trainer = trainer(tmp_path, eval_dataset=records()[:5], save_strategy="epoch")
    done = private_trainer.train()
    history = private_trainer.state.log_history
    assert math.isnan(done.training_loss)
    assert not {"loss", "grad_norm", "train_loss"} & {name for line in history for name in line}
    spent = [line["epsilon"] for line in history]
    assert spent == sorted(spent)
    assert spent[-1] == private_trainer.private.epsilon().upper
    assert "eval_loss" in private_trainer.evaluate()
    state = json.loads((tmp_path / "checkpoint-16" / "trainer_state.json").read_text())
    assert state["total_flos"] == 0  # it would count the drawn tokens
    run = private_trainer.private.finish()
    assert len(read_ledger(run.ledger).releases) == 16
    assert run.path == tmp_path / "private"


@pytest.mark.parametrize(
    ("privacy", "options", "limit"),
    [
        ({}, {"max_epsilon": 2.5}, 2.5),
        ({"noise_multiplier": None, "target_epsilon": 1.5}, {"num_train_epochs": 1}, 1.5),
    ],
)
def test_training_stops_at_the_budget(
    tmp_path: Path, privacy: dict[str, Any], options: dict[str, Any], limit: float
) -> None:
    private_trainer = trainer(tmp_path, privacy, **options)
    private_trainer.train()
    spent = private_trainer.private.epsilon().upper
    assert 0.6 * limit < spent <= limit
    if "max_epsilon" in options:
        assert private_trainer.state.global_step < 16
        assert private_trainer.control.should_training_stop
    else:
        assert private_trainer.state.global_step == 8


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """With a schedule of the learning rate, resumed within a pass."""
    options = {"save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch"}
    options |= {"per_device_train_batch_size": 12}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    broken = trainer(tmp_path / "broken", callbacks=[Interrupt()], **options)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    broken.private.close()
    other = tmp_path / "other" / "checkpoint-3"  # as of a Trainer without privacy
    shutil.copytree(
        tmp_path / "broken" / "checkpoint-3", other, ignore=shutil.ignore_patterns("private")
    )
    with pytest.raises(InvalidArgument, match="checkpoint must be a checkpoint of a private run"):
        trainer(tmp_path / "other", **options).train(resume_from_checkpoint=str(other))
    resumed = trainer(tmp_path / "broken", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.private.steps == resumed.state.global_step == 8
    assert torch.equal(weights(whole.model), weights(resumed.model))
    lines = read_ledger(tmp_path / "broken" / "private" / "ledger.jsonl").releases
    assert [line.step for line in lines] == [*range(5), *range(3, 8)]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    alone = trainer(tmp_path / "alone", per_device_train_batch_size=12, max_steps=3)
    alone.train()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         __file__, str(tmp_path / "two")],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "two" / "weights.pt", weights_only=True)
    torch.testing.assert_close(found, weights(alone.model), rtol=0, atol=2e-5)
    lines = read_ledger(tmp_path / "two" / "private" / "ledger.jsonl").releases
    assert [line.step for line in lines] == [0, 1, 2]


def train_on_ranks(folder: Path) -> None:
    """Train on the ranks of torchrun; each physical batch has half of the records."""
    own = trainer(folder, max_steps=3, ddp_backend="gloo", save_strategy="steps", save_steps=3)
    own.train()
    if own.is_world_process_zero():
        torch.save(weights(own.model), folder / "weights.pt")


def test_records_of_unequal_length_are_collated(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(2, 7, (RECORDS,), generator=generator).tolist()
    rows = [torch.randint(WORDS, (n,), generator=generator).tolist() for n in lengths]
    dataset = datasets.Dataset.from_dict({"input_ids": rows, "note": ["unused"] * RECORDS})

    def collate(some: list[dict[str, Any]]) -> dict[str, Tensor]:
        assert set(some[0]) == {"input_ids"}
        own = [torch.tensor(one["input_ids"]) for one in some]
        pad = nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(own, batch_first=True),
            "attention_mask": pad([torch.ones_like(one) for one in own], batch_first=True),
            "labels": pad(own, batch_first=True, padding_value=-100),
        }

    private_trainer = trainer(tmp_path, train_dataset=dataset, data_collator=collate, max_steps=3)
    private_trainer.train()
    assert private_trainer.private.steps == 3


def test_a_step_without_a_record_is_taken(tmp_path: Path) -> None:
    private_trainer = trainer(tmp_path, {"sampling_rate": 1e-9, "expected_batch_size": 6,
                                         "dataset_size": None}, max_steps=2)  # fmt: skip
    private_trainer.train()
    assert private_trainer.private.steps == 2
    assert not torch.equal(weights(private_trainer.model), weights(model()))


def test_a_loss_function_of_the_user_is_called_for_each_record(tmp_path: Path) -> None:
    def compute(outputs: Any, labels: Tensor, num_items_in_batch: object = None) -> Tensor:
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(logits, labels[:, 1:].flatten())

    own = trainer(tmp_path / "own", compute_loss_func=compute, max_steps=3)
    usual = trainer(tmp_path / "usual", max_steps=3)
    own.train()
    usual.train()
    torch.testing.assert_close(weights(own.model), weights(usual.model))


# What is refused.


VALUES = {
    "train_sampling_strategy": "group_by_length",
    "include_num_input_tokens_seen": "all",
    "neftune_noise_alpha": 5.0,
    "n_gpu": 2,
}


@pytest.mark.parametrize("name", TRAINING_ARGUMENTS)
def test_a_setting_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    given = arguments(tmp_path)
    setattr(given, "_n_gpu" if name == "n_gpu" else name, VALUES.get(name, True))
    with pytest.raises(InvalidArgument, match=rf"args\.{name} must be"):
        privacy_settings(given, PRIVACY)


@pytest.mark.parametrize("privacy", [None, 3.0, {"target_epsilon": 3.0}])
def test_privacy_without_a_delta_is_refused(tmp_path: Path, privacy: Any) -> None:
    with pytest.raises(InvalidArgument, match="privacy must be a dict with delta"):
        privacy_settings(arguments(tmp_path), privacy)


def test_refused_settings_are_those_of_transformers() -> None:
    """``group_by_length`` is of version 4."""
    known = {field.name for field in fields(TrainingArguments)} | {"n_gpu"}
    assert TRAINING_ARGUMENTS.keys() - known == {"group_by_length"}


def test_an_evaluation_on_training_records_is_refused(tmp_path: Path) -> None:
    data = records()
    with pytest.raises(InvalidArgument, match="eval_dataset must be records that do not train"):
        trainer(tmp_path, train_dataset=data, eval_dataset={"seen": data})
    private_trainer = trainer(tmp_path, train_dataset=data)
    with pytest.raises(InvalidArgument, match="eval_dataset must be records that do not train"):
        private_trainer.evaluate(data)


def test_a_mean_loss_of_a_subclass_is_refused_without_a_loss_per_record(tmp_path: Path) -> None:
    class Own(PrivateTrainer):
        def compute_loss(self, model: Any, inputs: Any, *others: Any, **more: Any) -> Tensor:
            return model(**inputs).loss  # type: ignore[no-any-return]

    with pytest.raises(InvalidArgument, match=r"compute_loss must be .* per_record_loss="):
        Own(model(), arguments(tmp_path), train_dataset=records(), privacy=PRIVACY)
    given = Own(
        model(), arguments(tmp_path, max_steps=1), train_dataset=records(), privacy=PRIVACY,
        per_record_loss=lambda net, batch: net(batch["input_ids"]).logits.sum(dim=(1, 2)),
    )  # fmt: skip
    given.train()
    assert given.private.steps == 1


def test_a_model_made_for_each_trial_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"trainer\.model_init must be"):
        trainer(tmp_path, model_init=lambda _: model())


def test_clipping_of_the_trainer_is_replaced_with_a_notice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="max_grad_norm") as found:
        private_trainer = trainer(tmp_path, max_grad_norm=1.0)
    assert found[0].filename == __file__
    assert private_trainer.args.max_grad_norm == 0


def test_a_step_beside_the_private_one_is_noticed(tmp_path: Path) -> None:
    class Meddle(TrainerCallback):
        def on_step_end(self, *_: Any, model: nn.Module, **others: Any) -> None:
            with torch.no_grad():
                next(model.parameters()).add_(1.0)

    with pytest.raises(UnrecordedChange):
        trainer(tmp_path, callbacks=[Meddle()]).train()


if __name__ == "__main__":
    train_on_ranks(Path(sys.argv[1]))
