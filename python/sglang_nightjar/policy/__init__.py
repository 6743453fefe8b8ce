"""The policy process. Imports neither torch nor sglang."""
