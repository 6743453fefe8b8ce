"""Portable CPU engine: kernels, attention and packed linear layers for CPUs that SGLang has no kernels for."""
