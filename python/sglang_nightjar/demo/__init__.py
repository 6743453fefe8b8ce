"""The embedded default model pair: a small real target and the EAGLE-3 draft head that we trained for it."""
