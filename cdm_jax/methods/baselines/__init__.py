"""The systems that the paper compares CDM with, one file each."""
