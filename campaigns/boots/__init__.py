"""Whole appliances under real systemd: disks, machines and the network between them.

``make boots`` makes the disk that all machines begin with (``tree``), enters namespaces of its own,
so that no bridge, mount or process outlives it, and runs ``tests/boots``.

tree        Debian, our dependencies, our package: a folder that overlays are put on
network     a bridge with the platform's OneGate on it
machine     one appliance: its disk, its context, power on and off
federation  a coordinator and its nodes, deployed as OneFlow does
engine      a Docker engine of the tests, and the images that appliances find in theirs
"""
