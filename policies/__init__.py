"""Speculation policies, one file each."""
