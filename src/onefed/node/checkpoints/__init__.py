"""Checkpoints of a node, and coming back from them.

* ``file``: one checkpoint as a file; its names and its layout
* ``folder``: the files of a node, its own ones and those that it keeps for others
* ``parcel``: one on its way to another node's disk, packed
* ``saver``: ``save_checkpoint``
* ``loader``: ``rejoin``
"""

from __future__ import annotations

from onefed.node.checkpoints.file import About, Checkpoint, Kind
from onefed.node.checkpoints.folder import Folder
from onefed.node.checkpoints.loader import rejoin
from onefed.node.checkpoints.saver import save_checkpoint

__all__ = ["About", "Checkpoint", "Folder", "Kind", "rejoin", "save_checkpoint"]
