"""What outlives a process: the recovery store, the operator's checkpoints, the trained model.

* ``files``: the one seam to the disk, durable writes and bounded reads
* ``archive``: arrays in an ``.npz`` file
* ``snapshot``: what exact resume needs to know, and its document
* ``series``: snapshots in a folder, newest first, as both stores keep them
* ``retention``: which rounds stay
* ``recovery``: the store of snapshots, written every round
* ``writer_lock``: one process writes it; ``life_lock``: whether a process lives
* ``export``: checkpoints for people and tools
* ``inspect``: what a folder holds, and whether it is whole
* ``model_file``: the final model in one file
* ``delta``: models as differences from each other, by their digest; ``delta_file``: their format
* ``spool``: updates that came early, on disk instead of in memory
"""

from __future__ import annotations

from onefed.checkpoint.delta import DeltaStore
from onefed.checkpoint.export import Exporter, Saved, holds_checkpoints
from onefed.checkpoint.files import DamagedError
from onefed.checkpoint.model_file import ModelFileError, write_model
from onefed.checkpoint.recovery import RecoveryStore
from onefed.checkpoint.retention import Retention
from onefed.checkpoint.series import Damaged, Loaded, ModelMismatchError
from onefed.checkpoint.snapshot import RoundRecord, Snapshot
from onefed.checkpoint.spool import Spool, SpoolFullError

__all__ = [
    "Damaged",
    "DamagedError",
    "DeltaStore",
    "Exporter",
    "Loaded",
    "ModelFileError",
    "ModelMismatchError",
    "RecoveryStore",
    "Retention",
    "RoundRecord",
    "Saved",
    "Snapshot",
    "Spool",
    "SpoolFullError",
    "holds_checkpoints",
    "write_model",
]
