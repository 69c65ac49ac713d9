"""Built-in models, and the import of a user's model factory.

A model may begin with a fixed part (``FixedFeatureModel``). Its features of each record are
computed once per run; only the part after it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.files.user_code import call_factory, call_user_function, import_object
from dpaudit.trainer.data import RecordArrays
from dpaudit.trainer.models.scattering_transform import SCATTERING_CHANNELS, ScatteringTransform
from dpaudit.trainer.models.wide_resnet import wide_resnet
from dpaudit.vocabulary.errors import InvalidArgument, did_you_mean

Shape = tuple[int, ...]
ModelFactory = Callable[[Shape, int], nn.Module]

FEATURES_AT_ONCE = 1024  # records per chunk of features; bounds memory
SCATTERING_GROUPS = 27  # groups of channels, as in Tramer & Boneh 2021
IMAGE_SIDE = 16  # least side of an image for which ``auto`` means cnn


class FixedFeatureModel(nn.Module):
    """A fixed part, which is not trained, followed by a trained part on its features.

    The fixed part must process each record independently and draw no random numbers; it is
    always in evaluation mode. The whole model takes records, like any other model.

    Args:
        features: The fixed part, without trainable parameters.
        trained: The trained part, on the output of ``features``.

    Raises:
        InvalidArgument: If the fixed part has a trainable parameter.
    """

    def __init__(self, features: nn.Module, trained: nn.Module) -> None:
        super().__init__()
        trainable = [name for name, p in features.named_parameters() if p.requires_grad]
        if trainable:
            allowed = "without trainable parameters: freeze them with requires_grad_(False)"
            raise InvalidArgument("features", trainable[0], allowed)
        self.features, self.trained = features.eval(), trained

    def train(self, mode: bool = True) -> FixedFeatureModel:
        """Set the mode of the trained part; the fixed part stays in evaluation mode.

        Args:
            mode: True for training mode, False for evaluation mode.

        Returns:
            This model.
        """
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, records: Tensor) -> Tensor:
        """Return the model's outputs.

        Args:
            records: Shape ``(records, *shape)``.

        Returns:
            Outputs of the trained part, shape ``(records, classes)`` for a classifier.
        """
        outputs: Tensor = self.trained(self.features(records))
        return outputs


def trained_part(model: nn.Module) -> nn.Module:
    """Return the part of a model that takes part in every step.

    Args:
        model: Any model.

    Returns:
        The part after the fixed features; the whole model if it has none.
    """
    return model.trained if isinstance(model, FixedFeatureModel) else model


def compute_features(model: nn.Module, records: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inputs of ``trained_part(model)`` for records.

    Args:
        model: Any model.
        records: Shape ``(records, *shape)``.

    Returns:
        The fixed part's features, computed in chunks; the records if there is no fixed part.
    """
    if not isinstance(model, FixedFeatureModel):
        return records
    model.features.eval()
    parts = torch.split(torch.from_numpy(records), FEATURES_AT_ONCE)
    device = next(model.parameters()).device
    with torch.no_grad():
        first = model.features(parts[0].to(device))
        found = torch.empty(len(records), *first.shape[1:])
        # Filled in place: the features of all records may take most of the memory.
        for part, place in zip(parts, torch.split(found, FEATURES_AT_ONCE), strict=True):
            place[:] = first if part is parts[0] else model.features(part.to(device))
    return found.numpy()


def linear_model(shape: Shape, classes: int) -> nn.Module:
    """Return multinomial logistic regression.

    Args:
        shape: Shape of one record.
        classes: Number of classes.

    Returns:
        One linear layer.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp_model(shape: Shape, classes: int) -> nn.Module:
    """Return a network with one hidden layer; tanh bounds activations, and so gradients.

    Args:
        shape: Shape of one record.
        classes: Number of classes.

    Returns:
        Two linear layers with 64 hidden units.
    """
    hidden = 64
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.Tanh(), nn.Linear(hidden, classes)
    )


def cnn_model(shape: Shape, classes: int) -> nn.Module:
    """Return two convolutions and two linear layers with tanh.

    Args:
        shape: Shape of one record: ``(side, side)`` or ``(channels, side, side)``.
        classes: Number of classes.

    Returns:
        The network.

    Raises:
        InvalidArgument: If records do not have 2 or 3 dimensions.

    References:
        Papernot et al. (2020), arXiv:2007.14191, Table 1.
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


def scattering_model(shape: Shape, classes: int) -> nn.Module:
    """Return a linear model on scattering features of images, with group normalization.

    The features depend on no statistic of the data.

    Args:
        shape: Shape of one record: ``(side, side)`` or ``(channels, side, side)``.
        classes: Number of classes.

    Returns:
        A model with fixed features.

    Raises:
        InvalidArgument: If records of this shape are not images, or are too small.

    References:
        Tramer & Boneh (2021), arXiv:2011.11660.
    """
    transform = ScatteringTransform(shape)
    channels = SCATTERING_CHANNELS * (shape[0] if len(shape) == 3 else 1)
    # Without affine weights the normalization is fixed too; it processes each record alone.
    features = nn.Sequential(
        transform, nn.GroupNorm(SCATTERING_GROUPS, channels, affine=False), nn.Flatten()
    )
    classifier = nn.Linear(channels * math.prod(transform.sides), classes)
    for (
        parameter
    ) in classifier.parameters():  # the loss is convex, so zero is as good a start as any
        nn.init.zeros_(parameter)
    return FixedFeatureModel(features, classifier)


# Chosen on the bundled digits and on MNIST at epsilon 3, with a clip norm of 0.5 and SGD.
LINEAR_LEARNING_RATE, DEFAULT_LEARNING_RATE = 1.0, 2.0
ADAM_LEARNING_RATE = 0.01

BUILT_IN_MODELS: dict[str, ModelFactory] = {
    "linear": linear_model,
    "mlp": mlp_model,
    "cnn": cnn_model,
    "scattering": scattering_model,
    "wrn-16-4": wide_resnet,
}
ALLOWED_MODELS = (
    f"auto, {', '.join(BUILT_IN_MODELS)} or package.module:factory that can be imported"
)


def resolve_model_name(name: str, shape: Shape) -> str:
    """Return the model's name, with ``auto`` resolved.

    Args:
        name: A built-in model, ``auto``, or ``package.module:factory``.
        shape: Shape of one record.

    Returns:
        For ``auto``: ``cnn`` for images with sides of at least 16, else ``linear``.
    """
    if name != "auto":
        return name
    image = len(shape) in {2, 3} and min(shape[-2:]) >= IMAGE_SIDE
    return "cnn" if image else "linear"


def default_learning_rate(model: str, shape: Shape, optimizer: str) -> float:
    """Return the learning rate that is used if none is set.

    Args:
        model: Name of the model.
        shape: Shape of one record.
        optimizer: Name of the optimizer.

    Returns:
        The learning rate.
    """
    if optimizer != "sgd":
        return ADAM_LEARNING_RATE
    return (
        LINEAR_LEARNING_RATE
        if resolve_model_name(model, shape) == "linear"
        else DEFAULT_LEARNING_RATE
    )


def make_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Return the named model, initialized from ``seed``.

    A user's factory is called with the shape and the number of classes, or without arguments if
    it takes none.

    Args:
        name: A built-in model, ``auto``, or ``package.module:factory``.
        shape: Shape of one record.
        classes: Number of classes.
        seed: Seed of torch's generator while the model is made.

    Returns:
        The model.

    Raises:
        InvalidArgument: If there is no such model, or the factory does not return a module with
            one output per class.
        UserCodeError: If the factory, or its model, raised an error.
    """
    name = resolve_model_name(name, shape)
    allowed = ALLOWED_MODELS + did_you_mean(name, BUILT_IN_MODELS)
    factory = BUILT_IN_MODELS.get(name) or import_object("model", name, allowed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = call_factory("model", name, factory, shape, classes)
        if not isinstance(model, nn.Module):
            raise InvalidArgument("model", name, "a factory that returns a torch.nn.Module")
        if name not in BUILT_IN_MODELS:
            _require_outputs(name, model, shape, classes)
    return model


def _require_outputs(name: str, model: nn.Module, shape: Shape, classes: int) -> None:
    """Refuse a model that cannot take the records, or does not return logits of their classes.

    It is called on two records of zeros, in evaluation mode, before training begins.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.no_grad():
        outputs = call_user_function(
            f"model {name}, of two records of shape {shape},", model, torch.zeros(2, *shape)
        )
    for module in training:
        module.training = True
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if found != (2, classes):
        allowed = f"a model whose output for two records is a tensor of shape {(2, classes)}"
        raise InvalidArgument("model", f"{name}, whose output is {found}", allowed)


# Evaluation of a trained model on records: confidences, losses and accuracy.

EVALUATED_AT_ONCE = 2048


@dataclass(frozen=True)
class Evaluation:
    """The outputs of a model on records.

    Attributes:
        confidences: ln(p / (1 - p)) with p the probability of the record's class, shape
            ``(records,)``. They separate records whose losses round to 0.
        accuracy: Fraction of correct predictions, in [0, 1].
    """

    confidences: NDArray[np.float64]
    accuracy: float

    @property
    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy in nats, shape ``(records,)``."""
        return np.logaddexp(0.0, -self.confidences)

    @property
    def loss(self) -> None:
        """No figure of a classifier, whose figure is the accuracy."""
        return

    def __str__(self) -> str:
        return f"held-out accuracy {self.accuracy:.1%}"


def evaluate_model(model: nn.Module, records: RecordArrays) -> Evaluation:
    """Compute confidences and accuracy of a model in evaluation mode.

    Args:
        model: The model, which is left in evaluation mode.
        records: The records.

    Returns:
        Confidences and accuracy; an accuracy of 0 for no records.
    """
    model.eval()
    confidences, right = [np.empty(0)], 0
    with torch.no_grad():
        for start in range(0, len(records), EVALUATED_AT_ONCE):
            outputs = model(torch.from_numpy(records.features[start : start + EVALUATED_AT_ONCE]))
            labels = torch.from_numpy(records.labels[start : start + EVALUATED_AT_ONCE])
            confidences.append(logit_scaled(outputs, labels).numpy())
            right += int((outputs.argmax(1) == labels).sum())
    return Evaluation(np.concatenate(confidences), right / max(1, len(records)))


def logit_scaled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return ln(p / (1 - p)) of each record's class, in float64.

    In float32, ln p is 0 once the logits differ by 17, so the loss of every such record is 0.
    The scaled logit is the difference itself: the class's logit minus the log-sum-exp of the
    others.

    Args:
        logits: Shape ``(records, classes)``.
        labels: Class of each record, shape ``(records,)``.

    Returns:
        Shape ``(records,)``.
    """
    # ln(p_y / (1 - p_y)) = z_y - ln(sum over j != y of exp(z_j)), for p = softmax(z).
    wide, own = logits.double(), labels[:, None]
    others = wide.scatter(1, own, -torch.inf)
    return wide.gather(1, own)[:, 0] - others.logsumexp(1)
