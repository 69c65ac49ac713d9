"""Secure aggregation: the server learns the sum of the updates, and no single one.

key_agreement, masks, secret_sharing   X25519 and HKDF, AES-CTR masks modulo 2^k, Shamir shares
messages, client, server               the protocol of Bonawitz et al. (2017), one method a phase
protocol                               all parties in one process, with a hook for dropouts
encoding, noise_shares, noisy_sum      updates as integers, noise in shares, what a round costs
discrete_gaussian, skellam             exact samplers; exact_uniforms decides close comparisons

NumPy, SciPy and cryptography alone: a participant needs no torch.
"""

from dpaudit.trainer.federated.secure_aggregation.client import Client
from dpaudit.trainer.federated.secure_aggregation.encoding import UpdateEncoding
from dpaudit.trainer.federated.secure_aggregation.messages import (
    Phase,
    SecureSumParameters,
    decode_message,
    encode_message,
)
from dpaudit.trainer.federated.secure_aggregation.noisy_sum import NoisySum
from dpaudit.trainer.federated.secure_aggregation.protocol import SecureAggregation
from dpaudit.trainer.federated.secure_aggregation.server import SecureSum, Server

__all__ = [
    "Client",
    "NoisySum",
    "Phase",
    "SecureAggregation",
    "SecureSum",
    "SecureSumParameters",
    "Server",
    "UpdateEncoding",
    "decode_message",
    "encode_message",
]
