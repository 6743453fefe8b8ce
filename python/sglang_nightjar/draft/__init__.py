"""The draft model while a server runs: whether it is there, what its cache lacks, and how that is made good."""
