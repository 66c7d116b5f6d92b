"""A small cloud on this machine.

* ``request``: what a user asked for, checked in every respect
* ``variables``: from what a user set to the context variables of all machines
* ``deploy``: state directories made for a request, started from, discarded
* ``spec``: what a federation was asked to be, and its document
* ``state``: state directories: names, places, and finding them again
* ``ownership``: the lock of a state directory, and the processes that carry it
* ``cloud``: the process that owns a federation, from power-on to the end
* ``service``: one OneFlow service in memory, its roles, virtual machines and their attributes
* ``onegate``: OneGate's HTTP interface to that service, on loopback
* ``summary``: the outcome of a start, as a document for programs
* ``peer_group``: a group without a coordinator on this machine, with ``peer_spec`` (its folder),
  ``peer_programs`` (its processes), ``peer_member`` (one node) and ``peer_judging`` (its scores)
* ``peer_machine``: the node of a virtual machine of the role ``peer``
"""
