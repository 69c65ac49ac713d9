"""Trainers of other frameworks, from the objects that the user's own script trains with.

``wrap`` turns a function that builds these objects into a factory of trainers for ``check``. What
the function returns determines the framework:

- ``model, optimizer, loader, loss``: Opacus in every mode, or plain torch;
- ``trainer``: a Hugging Face ``Trainer``;
- ``trainer, module, loader``: Lightning;
- ``TorchLoop``: the user's own loop in torch, such as one with Accelerate;
- ``params, optimizer, loss``: optax, with the loss of one record;
- ``params, clipped_grad, noise``: JAX Privacy;
- ``JaxLoop``: the user's own loop in JAX;
- an object with a method ``step``: it is used as it is.

Clients and strategies of Flower exchange messages. ``wrap`` refuses them, and names their factories
in ``dpaudit.attacks.conformance.federated``.

No framework is imported before the function returns an object of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from dpaudit.attacks.conformance.trainer_protocol import Record, seed_global_generators
from dpaudit.attacks.conformance.wrappers.parts import JaxLoop, Observed, TorchLoop
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Build = Callable[..., Any]
"""A function of the records and, if it has a second parameter, the seed."""

PARTS_ALLOWED = (
    "(model, optimizer, loader, loss), a Hugging Face Trainer, Lightning's (trainer, module, "
    "loader), (params, optimizer, loss), (params, clipped_grad, noise), a TorchLoop, a JaxLoop, or "
    "an object with a method step"
)


@dataclass(frozen=True)
class WrappedFactory:
    """A factory of trainers for ``check``, made by ``wrap``.

    Attributes:
        build: Builds the objects that the user trains with.
        observe: What a step returns.
        batch_size: Number of rows of every batch, of which missing ones have no gradient.
        dataset_size: Number of records that ``build`` is called with; None until ``check`` sets it.
        schedule: Learning rates of the first trainer, by step; filled by the trainers.

    Example:
        >>> from dpaudit.attacks import conformance
        >>> conformance.wrap(lambda records: None).for_records(24).dataset_size
        24
    """

    build: Build
    observe: Observed | None = None
    batch_size: int | None = None
    dataset_size: int | None = None
    schedule: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def for_records(self, count: int) -> WrappedFactory:
        """Return the factory for a data set of ``count`` records, unless it has a size."""
        return self if self.dataset_size is not None else replace(self, dataset_size=count)

    def assumptions_for(self, records: Sequence[Record]) -> tuple[str, ...]:
        """Return what the driver of the trainers assumes about them, as sentences."""
        return tuple(getattr(self(records, 0), "assumptions", ()))

    def __call__(self, records: Sequence[Record], seed: int) -> Any:
        """Build the objects and return the trainer that drives them.

        Args:
            records: Pairs of features and label.
            seed: Seed of the trainer, which also seeds the global generators during the call.

        Returns:
            The trainer.

        Raises:
            InvalidArgument: If ``build`` returns objects of no known framework, or of Flower.
        """
        with seed_global_generators(seed):
            built = self.build(*((records, seed) if _takes_a_seed(self.build) else (records,)))
        return _trainer_of(built, self, records)


def wrap(
    build: Build,
    *,
    observe: Observed | None = None,
    batch_size: int | None = None,
    dataset_size: int | None = None,
) -> WrappedFactory:
    """Turn a function that builds a training setup into a factory of trainers for ``check``.

    Args:
        build: From the records and, if it has a second parameter, the seed, to the objects that
            are trained with: see the module's list. It is called many times. Generators of its own
            must be seeded from the seed.
        observe: ``parameters``: a step returns their change. ``gradients``: a step returns the
            gradients that the optimizer gets, so learning rates and momentum are not tested. None:
            the parameters under plain SGD, otherwise the gradients. Changes of parameters are
            divided by the schedule of the learning rate, where the optimizer is known.
        batch_size: For optax: rows of every batch, of which missing ones have a gradient of zero,
            as in a loop that pads its batches. None: batches are not padded.
        dataset_size: Number of records of the claim's data set; None: the number given to
            ``check``.

    Returns:
        The factory. Its trainers accept ``step(include=indices)``.

    Raises:
        InvalidArgument: If an argument is out of its range.

    Example:
        >>> import torch
        >>> from dpaudit.attacks import conformance
        >>> def build(records, seed):
        ...     model = torch.nn.Linear(2, 1)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     loader = torch.utils.data.DataLoader(records, batch_size=2)
        ...     return model, optimizer, loader, torch.nn.functional.mse_loss
        >>> trainer = conformance.wrap(build)([(torch.zeros(2), torch.zeros(1))] * 4, seed=0)
        >>> trainer.step(include=[0, 3]).shape
        (3,)
    """
    for name, value in (("batch_size", batch_size), ("dataset_size", dataset_size)):
        if value is not None:
            require_count(name, value)
    if observe not in (None, "parameters", "gradients"):
        raise InvalidArgument("observe", observe, "'parameters', 'gradients' or None")
    return WrappedFactory(build, observe, batch_size, dataset_size)


def _takes_a_seed(build: Build) -> bool:
    """Return whether a build function has a second positional parameter."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(build).parameters.values()
    return len([one for one in found if one.kind in kinds]) > 1


# From what ``build`` returned to its driver. Drivers import their framework, so they are loaded
# only where an object of the framework exists.

_DRIVERS = "dpaudit.attacks.conformance.wrappers"
TORCH_MODULE, TRANSFORMATION = "torch.nn", "optax"


FLOWER_CLIENT = (
    "a trainer. Test a client of Flower by federated.check_client(federated.FlowerClientFactory("
    "make_app, reference, update_scale), claim, records=records), with make_app(records, seed, "
    "participant); import federated from dpaudit.attacks.conformance"
)
FLOWER_SERVER = (
    "a trainer. Test a strategy of Flower by federated.check_server(factory, "
    "factory.claim(rounds=n)) with factory = federated.FlowerStrategyFactory(make_strategy, "
    "reference, participants, noise_multiplier, clip_norm); import federated from "
    "dpaudit.attacks.conformance"
)
SERVER_MODULES = ("flwr.serverapp", "flwr.server", "flwr.compat.server")


def _refuse_flower(built: Any) -> None:
    """Refuse objects of Flower: they exchange messages, and have conformance tests of their own."""
    for part in _parts(built):
        if _is_from(part, "flwr"):
            server = any(_is_from(part, module) for module in SERVER_MODULES)
            allowed = FLOWER_SERVER if server else FLOWER_CLIENT
            raise InvalidArgument("what build returns", type(part).__name__, allowed)


def _trainer_of(built: Any, factory: WrappedFactory, records: Sequence[Record]) -> Any:
    _refuse_flower(built)
    for accepts, drive in _KNOWN:
        if accepts(built):
            return drive(built, factory, records)
    kinds = ", ".join(type(part).__name__ for part in _parts(built))
    raise InvalidArgument("what build returns", f"({kinds})", PARTS_ALLOWED)


def _parts(built: Any) -> tuple[Any, ...]:
    return tuple(built) if isinstance(built, tuple | list) else (built,)


def _is_from(part: Any, package: str) -> bool:
    """Return whether a class of an object, or a function itself, is of a package."""
    of_classes = [one.__module__ for one in type(part).__mro__]
    return any(f"{name}.".startswith(f"{package}.") for name in of_classes)


def _is_trainer(built: Any, package: str, parts: int) -> bool:
    """Return whether the first of some parts is an instance of a library's class ``Trainer``."""
    found = _parts(built)
    return len(found) == parts and any(
        one.__name__ == "Trainer" and f"{one.__module__}.".startswith(f"{package}.")
        for one in type(found[0]).__mro__
    )


def _is_torch(built: Any) -> bool:
    return len(_parts(built)) == 4 and _is_from(_parts(built)[0], TORCH_MODULE)


def _is_jax_privacy(built: Any) -> bool:
    return len(_parts(built)) in (3, 4) and _is_from(_parts(built)[1], "jax_privacy")


def _is_optax(built: Any) -> bool:
    return len(_parts(built)) in (3, 4) and _is_from(_parts(built)[1], TRANSFORMATION)


def _drive_torch(built: Any, factory: WrappedFactory, records: Sequence[Record]) -> Any:
    driver = import_module(f"{_DRIVERS}.torch_loop")
    loop = built if isinstance(built, TorchLoop) else driver.loop_of_opacus(*built)
    return driver.TorchTrainer(loop, factory.observe, factory.schedule)


def _drive_hugging_face(built: Any, factory: WrappedFactory, records: Sequence[Record]) -> Any:
    loop = import_module(f"{_DRIVERS}.library_loops").loop_of_hugging_face(*_parts(built))
    return _drive_torch(loop, replace(factory, observe=factory.observe or "gradients"), records)


def _drive_lightning(built: Any, factory: WrappedFactory, records: Sequence[Record]) -> Any:
    loop = import_module(f"{_DRIVERS}.library_loops").loop_of_lightning(*_parts(built))
    return _drive_torch(loop, replace(factory, observe=factory.observe or "gradients"), records)


def _drive_jax_loop(built: Any, factory: WrappedFactory, records: Sequence[Record]) -> Any:
    return import_module(f"{_DRIVERS}.jax_loop").JaxTrainer(built, records)


def _drive_optax(built: Any, factory: WrappedFactory, records: Sequence[Record]) -> Any:
    driver = import_module(f"{_DRIVERS}.jax_loop")
    loop = driver.loop_of_optax(*built, batch_size=factory.batch_size)
    return driver.JaxTrainer(loop, records)


def _drive_jax_privacy(built: Any, factory: WrappedFactory, records: Sequence[Record]) -> Any:
    driver = import_module(f"{_DRIVERS}.jax_loop")
    loop = driver.loop_of_jax_privacy(*built, batch_size=factory.batch_size)
    return driver.JaxTrainer(loop, records)


_KNOWN: tuple[tuple[Callable[[Any], bool], Callable[..., Any]], ...] = (
    (lambda built: isinstance(built, TorchLoop), _drive_torch),
    (lambda built: isinstance(built, JaxLoop), _drive_jax_loop),
    (lambda built: _is_trainer(built, "transformers", 1), _drive_hugging_face),
    (
        lambda built: (
            _is_trainer(built, "lightning", 3) or _is_trainer(built, "pytorch_lightning", 3)
        ),
        _drive_lightning,
    ),
    (_is_torch, _drive_torch),
    (_is_jax_privacy, _drive_jax_privacy),
    (_is_optax, _drive_optax),
    (lambda built: hasattr(built, "step"), lambda built, factory, records: built),
)
