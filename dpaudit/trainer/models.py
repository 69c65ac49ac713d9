"""The models that come with the trainer, and how a user's own is found.

A model may begin with a fixed part (``Featured``): what it makes of each record is computed
once a run, and only what follows is trained step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.files.user_code import called, imported, made
from dpaudit.trainer.scattering import CHANNELS, Scattering
from dpaudit.vocabulary.errors import InvalidArgument

Shape = tuple[int, ...]
Factory = Callable[[Shape, int], nn.Module]

FEATURED_AT_ONCE = 1024  # records whose features are computed in one go: a matter of memory
SCATTERING_GROUPS = 27  # each normalised on its own, as Tramer & Boneh 2021 have it
IMAGE_SIDE = 16  # from this side on, ``auto`` takes convolutions; else it is linear


class Featured(nn.Module):
    """A fixed part, which nothing trains, and a trained part on its features.

    The fixed part must treat each record by itself and draw no random numbers; it is always
    in evaluation mode. The whole takes records as they are, like any other model.
    """

    def __init__(self, features: nn.Module, trained: nn.Module) -> None:
        """Put ``trained`` behind ``features``.

        Raises:
            InvalidArgument: the fixed part has a parameter that could be trained.
        """
        super().__init__()
        loose = [name for name, p in features.named_parameters() if p.requires_grad]
        if loose:
            allowed = "without trainable parameters: freeze them with requires_grad_(False)"
            raise InvalidArgument("features", loose[0], allowed)
        self.features, self.trained = features.eval(), trained

    def train(self, mode: bool = True) -> Featured:
        """Set the mode of the trained part; the fixed part has but one."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, records: Tensor) -> Tensor:
        """Return the model's outputs."""
        outputs: Tensor = self.trained(self.features(records))
        return outputs


def trained_part(model: nn.Module) -> nn.Module:
    """Return what of ``model`` takes part in every step: all, or what follows its features."""
    return model.trained if isinstance(model, Featured) else model


def features_of(model: nn.Module, records: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what ``trained_part(model)`` is given for ``records``."""
    if not isinstance(model, Featured):
        return records
    model.features.eval()
    parts = torch.split(torch.from_numpy(records), FEATURED_AT_ONCE)
    device = next(model.parameters()).device
    with torch.no_grad():
        first = model.features(parts[0].to(device))
        found = torch.empty(len(records), *first.shape[1:])
        # One array filled in place: the features of all records may be most of the memory.
        for part, place in zip(parts, torch.split(found, FEATURED_AT_ONCE), strict=True):
            place[:] = first if part is parts[0] else model.features(part.to(device))
    return found.numpy()


def linear(shape: Shape, classes: int) -> nn.Module:
    """Return multinomial logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(shape: Shape, classes: int) -> nn.Module:
    """Return one hidden layer; tanh keeps activations, and so gradients, bounded."""
    hidden = 64
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.Tanh(), nn.Linear(hidden, classes)
    )


def cnn(shape: Shape, classes: int) -> nn.Module:
    """Return two convolutions and two linear layers with tanh.

    The small network of Papernot et al. 2020, arXiv:2007.14191, Table 1.
    """
    if len(shape) not in {2, 3}:
        raise InvalidArgument("model", "cnn", f"for records of 2 or 3 dimensions, not {shape}")
    channels = shape[0] if len(shape) == 3 else 1
    body = nn.Sequential(
        nn.Unflatten(1, (1, shape[0])) if len(shape) == 2 else nn.Identity(),
        nn.Conv2d(channels, 16, 8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
    )
    with torch.no_grad():
        features = body(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(body, nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, classes))


def scattering(shape: Shape, classes: int) -> nn.Module:
    """Return a linear model on scattering features of images: no statistic of the data.

    Tramer & Boneh 2021, arXiv:2011.11660, with group normalisation.
    """
    transform = Scattering(shape)
    channels = CHANNELS * (shape[0] if len(shape) == 3 else 1)
    # Without weights of its own, the normalisation is fixed too: it sees one record at a time.
    features = nn.Sequential(
        transform, nn.GroupNorm(SCATTERING_GROUPS, channels, affine=False), nn.Flatten()
    )
    classifier = nn.Linear(channels * math.prod(transform.sides), classes)
    for parameter in classifier.parameters():  # the loss is convex: no random start is better
        nn.init.zeros_(parameter)
    return Featured(features, classifier)


# Found on the bundled digits and on MNIST at epsilon 3, with a clip norm of 0.5 and SGD.
LINEAR_LEARNING_RATE, DEFAULT_LEARNING_RATE = 1.0, 2.0
ADAM_LEARNING_RATE = 0.01

BUILT_IN: dict[str, Factory] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "scattering": scattering,
}
ALLOWED = f"auto, {', '.join(BUILT_IN)} or package.module:factory that can be imported"


def resolved(name: str, shape: Shape) -> str:
    """Return the name of the model that ``auto`` stands for, or ``name`` itself."""
    if name != "auto":
        return name
    image = len(shape) in {2, 3} and min(shape[-2:]) >= IMAGE_SIDE
    return "cnn" if image else "linear"


def default_learning_rate(model: str, shape: Shape, optimizer: str) -> float:
    """Return the learning rate that is used where none was asked for."""
    if optimizer != "sgd":
        return ADAM_LEARNING_RATE
    return LINEAR_LEARNING_RATE if resolved(model, shape) == "linear" else DEFAULT_LEARNING_RATE


def make_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Return the model called ``name``, initialised from ``seed``.

    A user's factory is called with the shape and the number of classes, or without arguments
    if it takes none.

    Raises:
        InvalidArgument: no such model, or the user's factory does not return a module.
        UserCodeError: the factory, or its model, raised an error.
    """
    name = resolved(name, shape)
    factory = BUILT_IN.get(name) or imported("model", name, ALLOWED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = made("model", name, factory, shape, classes)
        if not isinstance(model, nn.Module):
            raise InvalidArgument("model", name, "a factory that returns a torch.nn.Module")
        if name not in BUILT_IN:
            _require_outputs(name, model, shape, classes)
    return model


def _require_outputs(name: str, model: nn.Module, shape: Shape, classes: int) -> None:
    """Refuse a model that cannot take the records, or returns no logits of their classes.

    It is tried on two records of zeros, in evaluation mode, as a model's first step would be
    too late to find out.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.no_grad():
        outputs = called(
            f"model {name}, of two records of shape {shape},", model, torch.zeros(2, *shape)
        )
    for module in training:
        module.training = True
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if found != (2, classes):
        allowed = f"a model whose output for two records is a tensor of shape {(2, classes)}"
        raise InvalidArgument("model", f"{name}, whose output is {found}", allowed)
