"""The simulator: virtual time, a network, disks and faults around the machines of ``peer``.

* ``options``: a schedule as data, and how a seed draws it
* ``world``: network and time; ``host``, ``disk``; ``content``, ``arrays``: what models are made of
* ``faults``: carries out what goes wrong
* ``checkers``, ``violation``: what must never happen
* ``run``: one schedule to its end; ``report``: many; ``minimise``; ``show``: events as text
* ``scenario``: transcripts: commands, and what a group does
* ``mutants``: seeded bugs that the checkers must see
"""
