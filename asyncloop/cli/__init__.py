"""The command line: programs over a run. Importing this package imports nothing.

signals     Ctrl-C, SIGTERM and a lost terminal, from the first moment on
logs        what the loggers say, on standard error
terminal    standard streams that nobody can take away, and what is written to them
app         the commands and their options
running, checking, datasets, looking_back, pruning, init, schema, doctor, origins, shipped_hooks    what the commands do
wording     times, sizes and values in tables
trouble     an exception as a message and an exit code
"""
