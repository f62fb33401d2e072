"""ml-collections configs, a file a dataset."""
