"""Elastic buffers: stable addresses over physical memory that comes and goes. Knows nothing of SGLang."""
