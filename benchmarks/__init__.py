"""What the package costs: times, operations, memory and sizes, each runnable as a module."""
