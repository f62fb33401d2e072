"""The parts of `benchmarks.accelerator`: each yields rows, the most useful first."""
