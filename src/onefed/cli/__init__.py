"""The command line: arguments, printing, exit codes.

main         the commands, and what becomes of errors
start        up, run, resume: from options to a federation, and staying with it
look         status, list, logs
checkpoint   checkpoint list, show, verify, diff, prune, with checkpoint_show and checkpoint_diff
peer         the commands of groups without a coordinator: peer_group, peer_evict, peer simulate
peer_request what is asked of such a group, checked in every respect
peer_screen  such a group shown: a picture (peer_live), lines, JSON lines
live         a federation on a terminal, drawn from its events
tables       tables and names from files, safe for any terminal
sparkline    a small chart of a few numbers
doctor       version and doctor
reference    docs/commands.md, made from the commands
"""
