"""The appliance: what a virtual machine does from power-on to ready, and after.

paths        where everything lies, below a root folder that can be moved
steps        a boot step as data; applying a list of them, with status on disk and events
superlink    the coordinator's steps (docs/boot.md)
supernode    a node's steps (docs/boot.md)
peer         the steps of a peer, without a coordinator (docs/boot.md); ``peers`` finds the others,
             ``peer_state`` is what its node says of itself
training_data  the folder of a machine's own data
discovery    finding the SuperLink through OneGate; which partition a node trains
identity     a node's key: published and registered, or enrolled by a token
frameworks   which machine-learning framework a node has
activity     what a node does, told to OneGate as it changes
earlier_run  the run of exported checkpoints, gone on with by a new coordinator
gpu_use      which GPUs a node trains on, and their metrics
metrics      what Prometheus asks a coordinator; ``metrics_use``: whether and where it is answered
partitions   which part of the data a node trains: claims that survive older nodes
programs     the command line and environment of each program of a machine
gateway      nginx in front of the SuperLink: its configuration, made and checked
process      runtime ``process``: programs as children, restarted when they die
platform     units, the container engine and the version: a machine with systemd, or without
units        units of systemd, from the list of programs
firewall     what a machine lets in and out, as rules of nftables
container    docker's command line, from a program
description  a program as a file; ``launch`` becomes it; ``ownership`` gives it its files
commands     the one door to programs that a boot waits for
surroundings what the platform put on the disk: context, token, OneGate
stages       plan, configure, bootstrap and drain as commands; ``keeper`` finds who keeps a machine
gpu          GPUs at boot, and what is missing for them
health       what READY means; certificates that end
lifecycle    the few lines of shell that the platform demands
guest        a machine made of processes: boots, keeps its programs running, drains

The steps are the ones a VM takes.
Without systemd and Docker, as on a laptop, the steps about them say "skipped", and why.
"""
