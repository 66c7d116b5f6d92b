"""A small cloud on this machine.

* ``service``: one OneFlow service in memory, its roles, virtual machines and their attributes.
* ``onegate``: OneGate's HTTP interface to that service, on loopback.
"""
