"""What onefed says to an OpenNebula cloud, and what it understands of the answers.

* ``onegate``: the client of OneGate, through which the virtual machines of one service
  find each other and publish attributes.
"""
