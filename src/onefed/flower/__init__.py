"""The hub engine: everything that runs on, or speaks to, Flower's servers.

adapter      every touch of a name that Flower 1.41.0 does not publish
adapter_runtime  the same, around tasks and the grid of a ServerApp
app_functions  functions that a managed app names: its first model, its measure
bundle       a Flower app directory, checked and packed; managed apps get our ServerApp
clients      which node is which client: stable keys, seeded sampling
exchange     one phase of a round: send, collect, sort out what came back
executor     our SuperExec: starts a ServerApp for each run, and writes down its process
forking      what processes need that fork others
instructions what the supervisor is told by the boot
judging      models judged by the app's own measure, in a process of its own
launcher     how the executor starts a ServerApp: forked, else as a program
lifesign     how a program tells its keeper that it does its work
loop         the rounds: true numbers, quorum, deadline, rule, recovery, events
nursery      a process that has imported a ServerApp, and forks one for each task
randomness   fresh random numbers in forked processes
registration which nodes may connect, and which are connected
report       what a ServerApp that is not ours prints, read as events
run_log      what a ServerApp prints: into a file and as events
run_watch    a run from its submission to its end
server_app   the ServerApp process: reads what it was handed, runs the loop
task_record  which process is the ServerApp of which run
supervisor   the coordinator's program: asks registration and run_watch again and again
"""
