"""onefed: federated learning on OpenNebula that does not lose a round.

The rooms of the house, and which may import which, are drawn in ARCHITECTURE.md.
"""

__version__ = "0.1.0"
