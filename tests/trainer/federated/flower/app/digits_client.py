"""The client of a Flower app for tests with real processes: softmax regression in numpy.

Flower starts a process per message. So this module imports nothing that only the server needs.
The folder of the run's configuration holds one file of records per participant.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from dpaudit.trainer.federated.flower import SecureServerSettings, join_secure_sum
from dpaudit.vocabulary.federation import SecureAggregationSettings

Weights = dict[str, NDArray[np.float32]]

PARTICIPANTS, STEPS, LEARNING_RATE = 4, 5, 0.5
SECURE = SecureServerSettings(
    SecureAggregationSettings(dropouts=1, colluders=1),
    PARTICIPANTS,
    clip_norm=0.5,
    noise_multiplier=0.001,
    delta=1e-5,
)
DYING = "dying"
"""A file of this name in the folder names a participant whose client dies in round 2."""


def train(weights: Weights, features: NDArray[np.float64], labels: NDArray[np.int64]) -> Weights:
    """Take steps of gradient descent in float64, which no order of sums changes by 1e-6."""
    weight, bias = weights["weight"].astype(np.float64), weights["bias"].astype(np.float64)
    truth = np.eye(10)[labels]
    for _ in range(STEPS):
        scores = features @ weight + bias
        scores -= scores.max(axis=1, keepdims=True)
        chances = np.exp(scores)
        gradient = (chances / chances.sum(axis=1, keepdims=True) - truth) / len(labels)
        weight = weight - LEARNING_RATE * features.T @ gradient
        bias = bias - LEARNING_RATE * gradient.sum(axis=0)
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def records_of(folder: Path, number: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    with np.load(folder / f"{number}.npz") as found:
        return found["features"], found["labels"]


def train_securely(weights: Weights, message: Message, context: Context) -> Weights:
    folder = Path(str(context.run_config["folder"]))
    return train(weights, *records_of(folder, int(str(context.node_config["partition-id"]))))


client = join_secure_sum(ClientApp(), SECURE, train_securely)


@client.train()
def train_one(message: Message, context: Context) -> Message:
    folder = Path(str(context.run_config["folder"]))
    number = int(str(context.node_config["partition-id"]))
    config = message.content.config_records["config"]
    dying = folder / DYING
    if config["server-round"] == 2 and dying.exists() and dying.read_text() == str(number):
        os._exit(9)
    arrays = message.content.array_records["arrays"]
    weights = {name: one.numpy() for name, one in arrays.items()}
    trained = train(weights, *records_of(folder, number))
    record = ArrayRecord({name: Array(one) for name, one in trained.items()})
    return Message(RecordDict({"arrays": record}), reply_to=message)
