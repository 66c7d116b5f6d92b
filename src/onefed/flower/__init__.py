"""The hub engine: everything that runs on, or speaks to, Flower's servers.

adapter      every touch of a name that Flower 1.41.0 does not publish
bundle       a Flower app directory, checked and packed; managed apps get our ServerApp
clients      which node is which client: stable keys, seeded sampling
exchange     one phase of a round: send, collect, sort out what came back
loop         the rounds: true numbers, quorum, deadline, rule, recovery, events
report       what a ServerApp that is not ours prints, read as events
server_app   the ServerApp process: reads what it was handed, runs the loop
supervisor   the coordinator's program: registers nodes, submits the run, watches it
"""
