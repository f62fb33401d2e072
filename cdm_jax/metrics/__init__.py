"""Image metrics in NumPy, the conventions that name them, and statistics over patients."""
