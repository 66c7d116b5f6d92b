"""A node of a peer group: the driver of ``peer`` with real time, disks and connections.

* ``driver``: the node; one task, and what it does in which order
* ``world``: what it is given, and what it shows of itself
* ``work``: what it does beside that task
* ``points``: named places at which a test holds it
* ``door``: what comes from others, understood or refused; ``refusals``: how people are told
* ``inbox``: the events that wait for it
* ``shortage``: people are told when it misses neighbours
* ``store``: its disk
* ``content``: models as bytes, their ranges, and the rule on a range
* ``items``: data in memory, and on its way
* ``training``: what it asks of an app, which is handed in
* ``transport``: what it asks of the network; ``grpc_transport`` and ``memory_transport``;
  ``pins``: whom gRPC lets in
* ``codec``: messages as bytes
* ``contact``: how a member is reached and known
"""

from __future__ import annotations

from onefed.node.driver import Node
from onefed.node.world import NodeError, NodeState, World
from onefed.peer.settings import Pace

__all__ = ["Node", "NodeError", "NodeState", "Pace", "World"]
