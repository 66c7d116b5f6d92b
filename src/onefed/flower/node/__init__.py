"""A node of the fleet, in place of Flower's SuperNode, SuperExec and a process start per message.

``loop``        the node: ask, let the app answer, reply
``polling``     when to ask
``membership``  join, stay online, leave; back at once after a crash
``workers``     the node's side of the processes that run apps
``forks``       these processes
``wire``        how messages go between the two
``calls``       what the app was given to do, on disk
``health``      ``GET /health``
``__main__``    the program
"""
