"""What outlives a process: the recovery store, the operator's checkpoints, the trained model.

* ``files``: the one seam to the disk, durable writes and bounded reads
* ``archive``: arrays in an ``.npz`` file
* ``snapshot``: what exact resume needs to know, and its document
* ``recovery``: the store of snapshots, written every round
* ``export``: checkpoints for people and tools
* ``model_file``: the final model in one file
"""

from __future__ import annotations

from onefed.checkpoint.export import Exporter, Saved, holds_checkpoints
from onefed.checkpoint.files import DamagedError
from onefed.checkpoint.model_file import ModelFileError, write_model
from onefed.checkpoint.recovery import Damaged, Loaded, RecoveryStore, RoundRecord, Snapshot

__all__ = [
    "Damaged",
    "DamagedError",
    "Exporter",
    "Loaded",
    "ModelFileError",
    "RecoveryStore",
    "RoundRecord",
    "Saved",
    "Snapshot",
    "holds_checkpoints",
    "write_model",
]
