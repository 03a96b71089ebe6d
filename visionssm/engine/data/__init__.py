"""Data sets, loaders, their processes, and the random numbers of a run."""
