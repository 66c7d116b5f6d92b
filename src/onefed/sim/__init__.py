"""The simulator: virtual time, a network, disks and faults around the machines of ``peer``."""
