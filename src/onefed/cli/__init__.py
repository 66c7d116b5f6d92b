"""The command line: arguments, printing, exit codes.

main         the commands, and what becomes of errors
start        up, run, resume: from options to a federation, and staying with it
look         status, list, logs
live         a federation on a terminal, drawn from its events
sparkline    a small chart of a few numbers
doctor       version and doctor
reference    docs/commands.md, made from the commands
"""
