"""Does a device compute what the CPU and a loop over records compute?"""

from __future__ import annotations

import struct

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor, nn

from device_checks.checks import Check, relative_gap, require_exact_products, trainer
from device_checks.networks import Network, Rows, networks
from dpaudit.trainer import Engine, Flat, Independent, OnGrid
from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.noise.gaussian_draws import (
    KEY_BYTES,
    chacha20_blocks,
    device_normals,
    words,
)
from dpaudit.trainer.noise.randomness import Purpose

CPU = torch.device("cpu")

STEPS = 2
"""Seeded steps that are compared."""

STEP_TOLERANCE, HALF_TOLERANCE = 1e-4, 0.05
"""Relative gaps allowed in float32, and under bf16, which has 8 bits."""

NORMAL_TOLERANCE = 2e-5
"""Gap allowed between a device's and the CPU's draws: logarithms and cosines in float32."""

# RFC 8439, section 2.3.2: key, counter 1, nonce, block; and appendix A.1, vector 1: all zeros.
RFC_BLOCKS = (
    (
        bytes(range(32)), 1, bytes.fromhex("000000090000004a00000000"),
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    ),
    (
        bytes(32), 0, bytes(12),
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
)  # fmt: skip


def same_steps(device: torch.device, *, tiny: bool) -> list[Check]:
    """Compare seeded steps of the device with the CPU's: one grid noise on both."""
    require_exact_products()
    names = ("MLP, batch", "CNN", "GPT-2, 4 x 256", "Llama", "LoRA")
    compared = [(n, each) for n, each in networks(tiny=tiny).items() if n.startswith(names)]
    return [
        Check(
            f"{STEPS} seeded steps, {name}",
            relative_gap(_moved(network, device), _moved(network, CPU)),
            STEP_TOLERANCE,
        )
        for name, network in compared
    ]


def _moved(network: Network, device: torch.device) -> dict[str, Tensor]:
    """Return by how much seeded steps moved each trained parameter."""
    model, batch = network.built(device)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    records = len(batch[0])
    with trainer(model, records, noise=OnGrid(), seed=1) as private:
        for _ in private.batches(torch.arange(records), steps=STEPS):
            private.step(network.loss, batch)
    return {name: p.detach() - before[name] for name, p in trained.items()}


def keystream(device: torch.device, *, tiny: bool) -> list[Check]:
    """Compare ChaCha20 on the device with RFC 8439 and with the `cryptography` library's."""
    wrong = 0
    for key, counter, nonce, block in RFC_BLOCKS:
        state = b"expand 32-byte k" + key + bytes(4) + nonce
        rows = torch.tensor(struct.unpack("<16i", state), dtype=torch.int32, device=device)
        made = chacha20_blocks(rows.view(4, 4), counter, 1).cpu().contiguous().numpy().tobytes()
        wrong += made != bytes.fromhex(block)
    count = 2**12 if tiny else 2**24
    key, step, purpose = bytes(range(KEY_BYTES)), 7, Purpose.GRADIENT_NOISE
    nonce = bytes(4) + purpose.value.to_bytes(4, "little") + step.to_bytes(8, "little")
    cipher = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
    expected = np.frombuffer(cipher.update(bytes(4 * count)), "<i4")
    differing = int((words(key, purpose, step, count, device).cpu().numpy() != expected).sum())
    draws = [device_normals(key, purpose, step, count, each).cpu() for each in (device, CPU)]
    gap = float((draws[0] - draws[1]).abs().max())
    # The variance of n normals has standard deviation sqrt(2 / n), their mean 1 / sqrt(n).
    variance = float(draws[0].double().var()) - 1
    return [
        Check("blocks that differ from RFC 8439", wrong, 0),
        Check(f"words of {count} that differ from a library's ChaCha20", differing, 0),
        Check("largest gap of normals to the CPU's", gap, NORMAL_TOLERANCE),
        Check("variance of normals minus 1", abs(variance), 6 * (2 / count) ** 0.5),
        Check("mean of normals", abs(float(draws[0].double().mean())), 6 / count**0.5),
    ]


def _loop(
    model: nn.Module, loss: PerSampleLoss, batch: Rows, clip_norm: float
) -> dict[str, Tensor]:
    """Return the sum of clipped gradients, each of a batch of one record."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in named.items()}
    for record in range(len(batch[0])):
        own = loss(model, tuple(part[record : record + 1] for part in batch)).sum()
        found = torch.autograd.grad(own, list(named.values()), allow_unused=True)
        rows = {n: g.double() for n, g in zip(named, found, strict=True) if g is not None}
        norm = float(torch.cat([g.flatten() for g in rows.values()]).norm())
        for name, g in rows.items():
            total[name] += g * min(1.0, clip_norm / norm)
    return total


def half_precision(device: torch.device, *, tiny: bool) -> list[Check]:
    """Compare clipped sums under bf16 autocast with the loop under bf16 and with float32."""
    found = []
    for name in ("GPT-2, 4 x 256", "Llama, 4 x 256"):
        network = networks(tiny=tiny)[name]
        model, batch = network.built(device)

        def loss(model: nn.Module, batch: Rows, network: Network = network) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16):
                return network.loss(model, batch).float()

        engine = Engine(model, loss)
        got = engine.clipped_sum(batch, Flat(0.5)).sums
        loop = _loop(model, loss, batch, 0.5)
        exact = Engine(model, network.loss).clipped_sum(batch, Flat(0.5)).sums
        found += [
            Check(f"bf16 sum to bf16 loop, {name}", relative_gap(got, loop), HALF_TOLERANCE),
            Check(f"bf16 sum to float32 sum, {name}", relative_gap(got, exact), HALF_TOLERANCE),
            Check(
                f"parameters record by record under bf16, {name}",
                len(engine.record_by_record),
                0,
            ),
        ]
    return found


def compiled(device: torch.device, *, tiny: bool) -> list[Check]:
    """Compare seeded steps of a compiled loss with those of the loss itself."""
    require_exact_products()
    found = []
    for name in [n for n in networks(tiny=tiny) if n.startswith(("MLP", "CNN"))]:
        network = networks(tiny=tiny)[name]
        sums = []
        for make in (_unchanged, torch.compile):
            model, batch = network.built(device)
            engine = Engine(make(model), network.loss)
            own = engine.clipped_sum(batch, Flat(0.5)).sums
            sums.append({n.removeprefix("_orig_mod."): s for n, s in own.items()})
        found.append(Check(f"compiled model, {name}", relative_gap(*sums), STEP_TOLERANCE))
    return found


def _unchanged(model: nn.Module) -> nn.Module:
    return model


def fresh_noise(device: torch.device, *, tiny: bool) -> list[Check]:
    """Take two steps with fresh keys: their noise must differ, and have the stated deviation."""
    size = 10**4 if tiny else 10**7
    moved = []
    for _ in range(2):
        model = nn.Linear(size, 1, bias=False).to(device)
        nn.init.zeros_(model.weight)
        with trainer(model, 1, noise=Independent()) as private:
            for _ in private.batches(torch.arange(1), steps=1):
                private.step(_no_gradient, (torch.zeros(1, size, device=device),))
        moved.append(model.weight.detach().double().cpu().flatten() / (0.05 * 0.5))
    both = float((moved[0] @ moved[1]) / size)
    deviations = [abs(float(each.square().mean()) - 1) for each in moved]
    return [
        Check("correlation of the noise of two runs", abs(both), 6 / size**0.5),
        Check("variance of the noise minus 1", max(deviations), 6 * (2 / size) ** 0.5),
    ]


def _no_gradient(model: nn.Module, batch: Rows) -> Tensor:
    found: Tensor = model(batch[0])[:, 0]
    return found
