"""Flax Linen blocks that two or more networks share."""
