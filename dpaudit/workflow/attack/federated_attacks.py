"""Membership inference on the final model of a federated run.

Members are the records that some participant holds; non-members are the held-out records, and the
training records that no participant drew. Uploads are not in a run's files. Attacks on uploads and
on their sums take arrays, see ``dpaudit.attacks.membership``.
"""

from __future__ import annotations

import numpy as np

from dpaudit.trainer.data import DatasetSplit, RecordArrays
from dpaudit.trainer.federated.federation_run import divide_records
from dpaudit.vocabulary.federation import FederatedConfig


def members_of_federation(
    config: FederatedConfig, split: DatasetSplit
) -> tuple[RecordArrays, RecordArrays]:
    """Return the members and the non-members of a federated run.

    Args:
        config: The settings of the run.
        split: Its data set.

    Returns:
        The records of all participants together, and the other records.

    Raises:
        InvalidArgument: If the records cannot be divided as they were.
    """
    held = np.zeros(len(split.train), dtype=bool)
    for part in divide_records(config, split):
        held[part] = True
    others = RecordArrays(
        np.concatenate([split.train.features[~held], split.heldout.features]),
        np.concatenate([split.train.labels[~held], split.heldout.labels]),
    )
    return split.train[held], others
