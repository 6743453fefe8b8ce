"""What this machine was measured to do: `nightjar profile` writes it, servers read it when they start."""
