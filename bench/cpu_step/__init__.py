"""How far a step of the CPU engine is from the time of its matrix products alone; see README.md."""
