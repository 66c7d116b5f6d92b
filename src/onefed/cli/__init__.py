"""The command line: arguments, printing, exit codes.

main         the commands, and what becomes of errors
start        up, run, resume: from options to a federation, and staying with it
look         status, list, logs
checkpoint   checkpoint list, show, verify, diff, prune, with checkpoint_show and checkpoint_diff
peer         peer simulate
live         a federation on a terminal, drawn from its events
tables       tables and names from files, safe for any terminal
sparkline    a small chart of a few numbers
doctor       version and doctor
reference    docs/commands.md, made from the commands
"""
