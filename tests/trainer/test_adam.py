"""Adam that takes off the noise: torch's own without any, near the clean one with it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

from dpaudit.trainer.adam import AdamCorrected
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.samplers import Cyclic
from dpaudit.trainer.clip_rules import Quantile
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.noise.gradient_noise import GradientNoise, Independent, NoiseContext, OnGrid
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import InvalidArgument

WIDTH = 5


def gradients(steps: int, seed: int, size: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(WIDTH, generator=generator).double() for _ in range(steps)]


def walked(
    optimizer: type[torch.optim.Optimizer], given: list[Tensor], **options: object
) -> list[Tensor]:
    """Return where a parameter goes, from zeros."""
    parameter = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))
    moved, found = optimizer([parameter], **options), []  # type: ignore[arg-type]
    for gradient in given:
        parameter.grad = gradient.clone()
        moved.step()
        found.append(parameter.detach().clone())
    return found


# Without noise.


@given(
    seed=st.integers(0, 1000),
    lr=st.floats(1e-4, 1.0),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.9999)),
    size=st.floats(1e-2, 1e2),
)
@settings(max_examples=30)
def test_without_noise_it_is_adam(
    seed: int, lr: float, betas: tuple[float, float], size: float
) -> None:
    given_ones = gradients(12, seed, size)
    ours = walked(AdamCorrected, given_ones, lr=lr, betas=betas, least=1e-300)
    theirs = walked(torch.optim.Adam, given_ones, lr=lr, betas=betas, eps=1e-300)
    for own, other in zip(ours, theirs, strict=True):
        # Each step moves by lr times a number of a few units, to rounding of float64.
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-11 * lr)


def test_what_is_left_counts_as_the_least_at_least() -> None:
    (moved,) = walked(
        AdamCorrected, [torch.full((WIDTH,), 0.5).double()], lr=0.1, least=0.04, noise_deviation=0.6
    )
    # 0.25 less 0.36 is below the least, whose root is 0.2.
    assert torch.allclose(moved, torch.full((WIDTH,), -0.1 * 0.5 / 0.2).double())


def test_the_noises_variance_is_taken_off_the_second_moment() -> None:
    (moved,) = walked(
        AdamCorrected, [torch.full((WIDTH,), 0.5).double()], lr=0.1, noise_deviation=0.3
    )
    # The root of 0.25 less 0.09 is 0.4.
    assert torch.allclose(moved, torch.full((WIDTH,), -0.1 * 0.5 / 0.4).double())


def test_a_parameter_without_a_gradient_stays() -> None:
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    optimizer = AdamCorrected(parameters, lr=0.1)
    parameters[0].grad = torch.ones(2)
    optimizer.step()
    assert not torch.equal(parameters[0], torch.ones(2))
    assert torch.equal(parameters[1], torch.ones(2))
    assert parameters[1] not in optimizer.state


def test_optimizer_closure_computes_the_loss() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = AdamCorrected([parameter], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert torch.allclose(parameter, torch.full((2,), 0.9))


# With noise.


@pytest.mark.parametrize("clean", [0.1, 0.5])
def test_the_second_moment_is_about_the_clean_one(clean: float) -> None:
    """Every coordinate's clean gradient is one number: so the step is its sign times lr."""
    width, steps, deviation, lr = 20_000, 400, 1.0, 0.01
    generator = torch.Generator().manual_seed(1)
    parameter = nn.Parameter(torch.zeros(width))
    second = 0.999
    optimizer = AdamCorrected(
        [parameter], lr=lr, betas=(0.9, second), least=1e-12, noise_deviation=deviation
    )
    for _ in range(steps):
        parameter.grad = clean + deviation * torch.randn(width, generator=generator)
        optimizer.step()
    square = optimizer.state[parameter]["square"] / (1 - second**steps)
    corrected = float((square - deviation**2).mean())
    # Of one squared gradient, the variance is 2 s^4 + 4 c^2 s^2; the average over steps with
    # these weights is worth at least steps / 2 of them, in each of the coordinates.
    one = math.sqrt(2 + 4 * clean**2)
    assert corrected == pytest.approx(clean**2, abs=5 * one / math.sqrt(steps / 2 * width))
    # What plain Adam would divide by is another number altogether.
    assert float(square.mean()) > 3 * clean**2


def test_steps_are_larger_than_plain_adams_by_the_noises_share() -> None:
    """Batches of many coordinates: a clean gradient drowned in noise is found again."""
    deviation, clean, steps = 1.0, 0.2, 3000
    noisy = [
        clean + deviation * row
        for row in torch.randn(steps, WIDTH, generator=torch.Generator().manual_seed(2)).double()
    ]
    options: dict[str, object] = {"lr": 1e-3, "betas": (0.9, 0.9999)}
    plain = walked(torch.optim.Adam, noisy, **options)
    ours = walked(AdamCorrected, noisy, least=clean**2 / 2, noise_deviation=deviation, **options)
    assert float(ours[-1].mean()) < 2 * float(plain[-1].mean()) < 0


# Its state.


def test_a_state_that_was_saved_goes_on_the_same_way() -> None:
    given_ones = gradients(8, 3)
    whole = walked(AdamCorrected, given_ones, lr=0.1, noise_deviation=0.3)
    parameter = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))
    first = AdamCorrected([parameter], lr=0.1, noise_deviation=0.3)
    for gradient in given_ones[:4]:
        parameter.grad = gradient
        first.step()
    saved = copy.deepcopy(first.state_dict())
    second = AdamCorrected([parameter], lr=7.0)
    second.load_state_dict(saved)
    for gradient in given_ones[4:]:
        parameter.grad = gradient
        second.step()
    assert torch.equal(parameter, whole[-1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("least", 0.0),
        ("betas", (1.0, 0.9)),
        ("betas", (0.9, -0.1)),
        ("noise_deviation", -1.0),
        ("noise_deviation", math.nan),
        ("noise_deviation", math.inf),
    ],
)
def test_bad_numbers_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=name):
        AdamCorrected([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]


# In private steps.


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(net(x), y, reduction="none")


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, WIDTH, generator=generator)
    return x, torch.randint(0, 3, (40,), generator=generator)


def trainer(**changes: object) -> tuple[Private, AdamCorrected]:
    torch.manual_seed(7)
    net = nn.Linear(WIDTH, 3)
    optimizer = AdamCorrected([{"params": [net.weight]}, {"params": [net.bias], "lr": 0.5}], lr=0.1)
    given_ones: dict[str, object] = {
        "noise_multiplier": 1.5,
        "clip_norm": 0.5,
        "sampling_rate": 0.25,
        "expected_batch_size": 10.0,
        "seed": 11,
        "noise": Independent(),  # of exactly the deviation that is set
        **changes,
    }
    return make_private(net, optimizer, **given_ones), optimizer  # type: ignore[arg-type]


def deviations(**changes: object) -> list[float]:
    """Return the noise deviation that the optimizer was told in each of three steps."""
    private, optimizer = trainer(**changes)
    found = []
    for batch in private.batches(data(), steps=3):
        private.step(loss, batch)
        first, second = (group["noise_deviation"] for group in optimizer.param_groups)
        assert first == second
        found.append(first)
    return found


def test_private_steps_say_how_large_the_noise_is() -> None:
    assert deviations() == pytest.approx([1.5 * 0.5 / 10] * 3)


def test_noise_and_clip_schedules_are_followed() -> None:
    found = deviations(noise_multiplier=lambda t: 1.0 + t, clip_norm=lambda t: 2.0**-t)
    assert found == pytest.approx([0.1, 2 * 0.5 / 10, 3 * 0.25 / 10])


def test_noise_with_a_learnt_clip_norm_counts_what_the_count_costs() -> None:
    rule = Quantile(0.5, count_noise=2.0)
    private, optimizer = trainer(clipping=rule)
    for batch in private.batches(data(), steps=3):
        said = 1.5 * private.clip_rule.sensitivity(0, 1.5) / 10
        private.step(loss, batch)
        assert optimizer.param_groups[0]["noise_deviation"] == pytest.approx(said)
    assert private.clip_rule != rule


@pytest.mark.parametrize(
    ("noise", "sampler"),
    [(Independent(), None), (OnGrid(), None), (Banded(3), Cyclic(3, 9))],
)
def test_the_deviation_is_that_of_the_noise_that_is_added(
    noise: GradientNoise, sampler: Cyclic | None
) -> None:
    """Correlated noise of one step is larger than independent noise of its multiplier."""
    found = deviations(noise=noise, sampler=sampler)
    dimension, stream = 18, Keystream.seeded(11)
    expected = [
        noise.deviation(1.5, 0.5, dimension, NoiseContext(stream, step)) / 10 for step in range(3)
    ]
    assert found == pytest.approx(expected)
    if sampler is not None:
        assert found[0] > 1.1 * 1.5 * 0.5 / 10


def test_it_works_with_torchs_schedulers() -> None:
    private, optimizer = trainer()
    scheduler = StepLR(optimizer, step_size=1, gamma=0.1)
    rates = []
    for batch in private.batches(data(), steps=3):
        rates.append([group["lr"] for group in optimizer.param_groups])
        private.step(loss, batch)
        scheduler.step()
    assert rates == [pytest.approx([0.1 * 0.1**t, 0.5 * 0.1**t]) for t in range(3)]


def test_a_learning_rate_of_zero_moves_nothing() -> None:
    private, optimizer = trainer()
    LambdaLR(optimizer, lambda epoch: 0.0)
    before = [p.detach().clone() for p in private.model.parameters()]
    for batch in private.batches(data(), steps=2):
        private.step(loss, batch)
    for was, parameter in zip(before, private.model.parameters(), strict=True):
        assert torch.equal(was, parameter)


def test_private_training_improves_the_model() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(600, WIDTH, generator=generator)
    batch_of_all = x, (x[:, 0] > 0).long()
    private, _ = trainer(sampling_rate=0.2, expected_batch_size=120.0, noise_multiplier=1.0)
    for batch in private.batches(batch_of_all, steps=60):
        private.step(loss, batch)
    right = private.model(x)[:, :2].argmax(dim=1) == batch_of_all[1]
    assert float(right.float().mean()) > 0.9
