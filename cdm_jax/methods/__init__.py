"""The systems: one module each, looked up by name, all behind the protocol of `base`."""
