"""Cost and memory of private steps over plain SGD's, on a device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from device_checks.checks import trainer
from device_checks.networks import Network
from dpaudit.trainer import Independent, Private

Step = Callable[[], None]

WARM_STEPS = 12
"""Private steps before timing: plans are made, and premises verified at steps 1, 4 and 8."""


@dataclass(frozen=True)
class Speed:
    """Medians of alternating steps.

    Attributes:
        network: Name of the network.
        plain_ms: Time of a plain step: of the device between CUDA events, or of the CPU.
        ratio: Private over plain, by that time.
        plain_wall_ms: Wall time of a plain step.
        wall_ratio: Private over plain, by wall time.
        first: Wall time of the first private step over that of a plain step.
        plain_mb: Peak memory of plain steps, in MB; None on a CPU.
        memory_ratio: Peak memory of private steps over that; None on a CPU.
        slow: Parameters that are differentiated record by record.
    """

    network: str
    plain_ms: float
    ratio: float
    plain_wall_ms: float
    wall_ratio: float
    first: float
    plain_mb: float | None
    memory_ratio: float | None
    slow: int


def speed(
    name: str, network: Network, device: torch.device, *, seconds: float, rounds: int
) -> Speed:
    """Time plain and private steps in turns, then weigh each alone.

    Noise is float32 ``Independent`` under a fresh key.

    Args:
        name: Name of the network.
        network: The network.
        device: Where it runs.
        seconds: Time after which no further round begins.
        rounds: Steps of each kind at most.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    plain, (private, own) = _plain_step(network, device), _private_step(network, device)
    plain()
    first = _timed(private, device)[1]
    for _ in range(WARM_STEPS):
        plain()
        private()
    end, pairs = time.monotonic() + seconds, []
    while len(pairs) < rounds and (len(pairs) < 3 or time.monotonic() < end):
        pairs.append((_timed(plain, device), _timed(private, device)))
    slow = len(own._engine.record_by_record)
    wall = statistics.median(one[1] for one, _ in pairs)
    del plain, private, own
    weights = [_peak(make, network, device) for make in (_plain_step, _private_alone)]
    return Speed(
        name,
        1e3 * statistics.median(one[0] for one, _ in pairs),
        statistics.median(other[0] / one[0] for one, other in pairs),
        1e3 * wall,
        statistics.median(other[1] / one[1] for one, other in pairs),
        first / wall,
        weights[0],
        weights[1] / weights[0] if weights[0] and weights[1] else None,
        slow,
    )


def _plain_step(network: Network, device: torch.device) -> Step:
    model, batch = network.built(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        network.loss(model, batch).mean().backward()
        optimizer.step()

    return step


def _private_step(network: Network, device: torch.device) -> tuple[Step, Private]:
    model, batch = network.built(device)
    records = len(batch[0])
    private = trainer(model, records, noise=Independent())
    # What is drawn are numbers, so that the step takes the batch of the plain step.
    draws: Iterator[object] = iter(private.batches(torch.arange(records), steps=10**6))

    def step() -> None:
        next(draws)
        private.step(network.loss, batch)

    return step, private


def _private_alone(network: Network, device: torch.device) -> Step:
    return _private_step(network, device)[0]


def _timed(step: Step, device: torch.device) -> tuple[float, float]:
    """Return seconds of the device, or of the CPU, and seconds by the wall clock."""
    if device.type != "cuda":
        start, cpu = time.perf_counter(), time.process_time()
        step()
        return time.process_time() - cpu, time.perf_counter() - start
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start = time.perf_counter()
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3, time.perf_counter() - start


def _peak(
    make: Callable[[Network, torch.device], Step], network: Network, device: torch.device
) -> float | None:
    """Return the peak memory of three steps, the first one included, in MB; None on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step = make(network, device)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
