"""Faults that are described from the packages' source, and why they are not executed."""

from __future__ import annotations

from faults import Fault

FAULTS = (
    Fault(
        "classes are read from the labels (diffprivlib)", ("diffprivlib==0.6.6",),
        "LogisticRegression and GaussianNB take the set of classes from the private labels, so "
        "the only record of a class is visible in the model",
        "diffprivlib/models/logistic_regression.py, fit",
        why_not="the package does not import with scikit-learn 1.8; the conformance tests audit "
        "steps, and these models have none",
    ),
    Fault(
        "shuffled batches accounted as Poisson (TensorFlow Privacy)",
        ("tensorflow-privacy==0.9.0",),
        "its guides train on shuffled batches of fixed size; compute_dp_sgd_privacy amplified by "
        "Poisson sampling, and today's statement prints both figures",
        "tensorflow_privacy/privacy/analysis/compute_dp_sgd_privacy_lib.py",
        why_not="needs TensorFlow; the same fault is executed for Opacus and dp-transformers",
    ),
    Fault(
        "masks from 32 bits (Flower's SecAgg+)", ("flwr==1.42.0",),
        "the 32 bytes of a shared key are folded to a seed of 32 bits before masking",
        "https://github.com/adap/flower/issues/7522",
        why_not="the conformance tests of masks need uploads in the terms of masked_uploads; "
        "SecAgg+ does not run with the strategies that are tested here",
    ),
)  # fmt: skip
