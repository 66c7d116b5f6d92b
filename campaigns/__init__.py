"""Long proofs, run by hand or by night: ``python -m campaigns.NAME``. Their tests run a few states.

* ``disks``: a disk in memory, one that records, one that fails
* ``crashes``: what a power cut may leave, under a stated model
* ``workloads``: what is done on those disks, and what must be found afterwards
* ``power_cut``, ``kth_call``, ``mutations``, ``store_machine``: the campaigns
* ``peer_faults``: faults on real processes of a peer group, a table and by chance (``peers``)
* ``schedules``: the peer protocol in the simulator
* ``hostile``: files made to harm, one by one
* ``bad_clients``: malformed replies (``malformed``) and attacks (``attacks``), under our loop and
  under stock Flower's (``federations``)
* ``results``: shards of seeds, and the file in which they add up
"""
