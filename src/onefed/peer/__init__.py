"""The peer protocol: events and the time in, actions out; no clock, no socket, no disk, no numpy.

* ``messages``: values, items of data, and the messages
* ``interface``: events, actions, and the duties of the driver
* ``settings``: durations and bounds; what a node starts from
* ``safety``: the rules on which agreement depends
* ``state``: what a node knows
* ``machine``: the one door, ``step(now_s, event) -> actions``
* ``election``: terms and votes
* ``leading``: heartbeats, plans, attempts, commits
* ``exchange``: slices, shards, acceptance
* ``repair``: catching up, and asking for what is missing
* ``fetch``: a model that is missing, in pieces from several nodes
* ``membership``: joining, leaving, eviction
* ``journal``: records on disk, and what they say after a crash

docs/protocol.md has the promises, the state machine and the proof sketch.
"""
