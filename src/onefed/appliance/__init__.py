"""The appliance: what a virtual machine does from power-on to ready, and after.

paths        where everything lies, below a root folder that can be moved
steps        a boot step as data; applying a list of them, with status on disk and events
superlink    the coordinator's steps (docs/boot.md)
supernode    a node's steps (docs/boot.md)
discovery    finding the SuperLink through OneGate; which partition a node trains
programs     the command line and environment of each program of a machine
gateway      nginx in front of the SuperLink: its configuration, made and checked
process      runtime ``process``: programs as children, restarted when they die
guest        a machine made of processes: boots, keeps its programs running, drains

The steps are the ones a VM takes.
A laptop has no Docker and no systemd, so the steps about them say "skipped" there, and why.
"""
