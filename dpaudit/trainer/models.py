"""The models that come with the trainer, and how a user's own is found."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from dpaudit.vocabulary.errors import InvalidArgument

Shape = tuple[int, ...]
Factory = Callable[[Shape, int], nn.Module]

IMAGE_SIDE = 16  # from this side on, ``auto`` takes convolutions; else it is linear


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


# Found on the bundled digits and on MNIST at epsilon 3, with a clip norm of 0.5 and SGD.
LINEAR_LEARNING_RATE, DEFAULT_LEARNING_RATE = 1.0, 2.0
ADAM_LEARNING_RATE = 0.01

BUILT_IN = {"linear": linear, "mlp": mlp, "cnn": cnn}


def resolved(name: str, shape: Shape) -> str:
    """Return the name of the model that ``auto`` stands for, or ``name`` itself."""
    if name != "auto":
        return name
    image = len(shape) in {2, 3} and min(shape[-2:]) >= IMAGE_SIDE
    return "cnn" if image else "linear"


def default_learning_rate(model: str, shape: Shape, optimizer: str) -> float:
    """Return the learning rate that is used where none was asked for."""
    if optimizer == "adam":
        return ADAM_LEARNING_RATE
    return LINEAR_LEARNING_RATE if resolved(model, shape) == "linear" else DEFAULT_LEARNING_RATE


def make_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Return the model called ``name``, initialised from ``seed``.

    Raises:
        InvalidArgument: no such model, or the user's factory does not return a module.
    """
    name = resolved(name, shape)
    factory = BUILT_IN.get(name) or _imported(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory(shape, classes)
    if not isinstance(model, nn.Module):
        raise InvalidArgument("model", name, "a factory that returns a torch.nn.Module")
    return model


def _imported(name: str) -> Factory:
    allowed = f"auto, {', '.join(BUILT_IN)} or package.module:factory that can be imported"
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InvalidArgument("model", name, allowed)
    if os.getcwd() not in sys.path:  # an installed command does not look where it is called
        sys.path.append(os.getcwd())
    try:
        return cast(Factory, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise InvalidArgument("model", name, f"{allowed} ({error})") from error
