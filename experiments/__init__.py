"""Studies on top of the package: thin, resumable, each runnable as a module."""
