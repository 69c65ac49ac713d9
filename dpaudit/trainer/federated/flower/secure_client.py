"""The client side of secure aggregation over Flower's Message API.

A client app answers four messages per round. The third one holds the global model: the client
trains, clips, adds its share of the noise, and masks the result. The state of the round stays in
Flower's context of the node.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from dpaudit.trainer.federated.flower.client import answer_participant, partition_of
from dpaudit.trainer.federated.flower.secure_participant import (
    KeySource,
    State,
    StoredParticipant,
    fresh_key,
)
from dpaudit.trainer.federated.flower.secure_settings import SecureServerSettings
from dpaudit.trainer.federated.secure_aggregation.messages import Phase
from dpaudit.trainer.federated.updates import Update, check_update
from dpaudit.vocabulary.errors import ProtocolViolation

ACTIONS = {
    Phase.ADVERTISE_KEYS: "query.dpaudit_advertise_keys",
    Phase.SHARE_KEYS: "query.dpaudit_share_keys",
    Phase.MASKED_INPUT: "train.dpaudit_masked_input",
    Phase.UNMASKING: "query.dpaudit_unmask",
}
"""Message type of each phase."""

ARRAYS = "arrays"
ENVELOPE, MESSAGE = "secure-sum", "message"
"""Record and key that hold a message of the protocol."""

STATE = "dpaudit-secure-sum"
"""Record of the node's state between two messages."""

LocalTraining = Callable[[Update, Message, Context], Update]
"""Trains from the global model: takes and returns float32 arrays by name."""

__all__ = ["join_secure_sum"]


def join_secure_sum(
    app: ClientApp,
    settings: SecureServerSettings,
    train: LocalTraining,
    *,
    number: Callable[[Context], int] = partition_of,
    key_source: KeySource = fresh_key,
) -> ClientApp:
    """Make a client app a participant of secure aggregation.

    Args:
        app: The client app.
        settings: The participant's own settings of the sum. A server with others is refused.
        train: Local training. The clip norm of the settings bounds what it changes.
        number: Returns the number of a node, from 0.
        key_source: Draws the 32 secret bytes of a round; for tests.

    Returns:
        The same app.

    Example:
        >>> from dpaudit.vocabulary.federation import SecureAggregationSettings
        >>> settings = SecureServerSettings(
        ...     SecureAggregationSettings(dropouts=1), 4, 1.0, 2.0, delta=1e-5)
        >>> app = join_secure_sum(ClientApp(), settings, lambda weights, message, context: weights)
    """

    def participant(context: Context, state: State) -> StoredParticipant:
        return StoredParticipant(number(context), settings.noisy_sum, state, key_source)

    def advertise_keys(message: Message, context: Context) -> Message:
        state = _load(context)
        return _answer(message, context, state, participant(context, state).advertise_keys)

    def share_keys(message: Message, context: Context) -> Message:
        state = _load(context)
        return _answer(message, context, state, participant(context, state).share_keys)

    def masked_input(message: Message, context: Context) -> Message:
        state = _load(context)
        own = participant(context, state)
        own.require_masked_input()
        weights = _weights_of(message)
        trained = check_update(
            train(weights, message, context), weights, participant=number(context)
        )
        update = np.concatenate([(trained[name] - weights[name]).ravel() for name in weights])
        return _answer(message, context, state, lambda data: own.masked_input(data, update))

    def unmask(message: Message, context: Context) -> Message:
        state = _load(context)
        return _answer(message, context, state, participant(context, state).unmask)

    app.query(_action(Phase.ADVERTISE_KEYS))(advertise_keys)
    app.query(_action(Phase.SHARE_KEYS))(share_keys)
    app.train(_action(Phase.MASKED_INPUT))(masked_input)
    app.query(_action(Phase.UNMASKING))(unmask)
    return answer_participant(app, number)


def envelope(data: bytes) -> ConfigRecord:
    """Return a message of the protocol as a record.

    Args:
        data: The encoded message.

    Returns:
        The record.
    """
    return ConfigRecord({MESSAGE: data})


def opened(message: Message) -> bytes:
    """Return the message of the protocol that a Flower message holds.

    Args:
        message: The Flower message.

    Returns:
        The encoded message.

    Raises:
        ProtocolViolation: If there is none.
    """
    record = message.content.config_records.get(ENVELOPE)
    data = None if record is None else record.get(MESSAGE)
    if not isinstance(data, bytes):
        raise ProtocolViolation("a reply holds no message of secure aggregation")
    return data


def _action(phase: Phase) -> str:
    """Return the action of a phase, which Flower routes by."""
    return ACTIONS[phase].partition(".")[2]


def _answer(
    message: Message, context: Context, state: State, answer: Callable[[bytes], bytes]
) -> Message:
    """Answer a message, and keep the state also if that fails: nothing is answered twice."""
    try:
        data = answer(opened(message))
    finally:
        context.state[STATE] = ConfigRecord(dict(state))
    return Message(RecordDict({ENVELOPE: envelope(data)}), reply_to=message)


def _load(context: Context) -> State:
    """Return the participant's stored state; empty before the first round."""
    found = context.state.config_records.get(STATE)
    return {name: value for name, value in (found or {}).items() if isinstance(value, int | bytes)}


def _weights_of(message: Message) -> Update:
    """Return the global model that came with a message."""
    return {name: one.numpy() for name, one in message.content.array_records[ARRAYS].items()}
