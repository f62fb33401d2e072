"""NIfTI folders in, batches out: discovery, splits, the prepared cache and the phantom."""
