"""The benchmark that decides: loads that move, every arm under the same conditions, what the client sees."""
