"""Train a small GPT-2 with the Trainer of Hugging Face, privately.

    pip install 'dpaudit[hugging-face]'
    python examples/hugging_face_trainer.py

The text is made up here: sums such as "3+4=7". The script differs from one without privacy in
the class of the trainer and in ``privacy``.
"""

from __future__ import annotations

import argparse

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from dpaudit.trainer.integrations import PrivateTrainer
from dpaudit.vocabulary.rounding import round_up

CHARACTERS = "0123456789+=."
RECORDS, HELD_OUT = 2000, 200


def sums(records: int) -> list[dict[str, torch.Tensor]]:
    """Return records of one sum each, as the numbers of its characters."""
    terms = torch.randint(5, (records, 2)).tolist()
    texts = [f"{a}+{b}={a + b}." for a, b in terms]
    rows = [torch.tensor([CHARACTERS.index(one) for one in text]) for text in texts]
    return [{"input_ids": row, "labels": row} for row in rows]


def main(folder: str, epochs: float) -> None:
    """Train, evaluate on other records, and finish the run."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(CHARACTERS), n_positions=8, n_embd=32, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=12, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    trainer = PrivateTrainer(
        GPT2LMHeadModel(config),
        TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=200,  # the expected batch size
            learning_rate=0.02,
            max_grad_norm=0.0,  # private steps clip the gradient of each record
            logging_steps=10,
            save_steps=20,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=sums(RECORDS),
        eval_dataset=sums(HELD_OUT),
        privacy={"target_epsilon": 4.0, "delta": 1e-5, "dataset_size": RECORDS},
    )
    trainer.train()  # train(resume_from_checkpoint=True) continues an interrupted run
    held_out = trainer.evaluate()["eval_loss"]
    run = trainer.private.finish()
    spent = trainer.private.epsilon().upper
    print(f"epsilon at most {round_up(spent)}; loss of other records {held_out:.3f}")
    print(f"run in {run.path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="runs/sums", help="folder of checkpoints and run")
    parser.add_argument("--epochs", type=float, default=6.0)
    given = parser.parse_args()
    main(given.output, given.epochs)
