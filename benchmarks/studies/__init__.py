"""The studies of `benchmarks.efficiency`, each a function that yields rows, and their processes.

A module whose name ends in `_side` runs in the processes that are timed, which `worker` starts.
"""
