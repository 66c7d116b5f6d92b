"""Groups of real node processes, and what is done to them: the parts of ``campaigns.peer_faults``.

* ``node``: the process of one node, with an app that takes no time to start
* ``net``: network namespaces, in which links are cut and lose packets
* ``group``: the processes, and what their events say; a checker of agreement
* ``cells``: the table of faults, and how each is carried out
* ``steps``: what several of them do; ``joining``: those of a node that joins
* ``hostile``: a member that sends nonsense; ``foreign``: a peer whose certificate nobody knows
* ``soak``: faults drawn from a seed, for so many minutes
* ``table``: the results as a page
"""
