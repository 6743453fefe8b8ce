"""A discrete-event model of a serving engine that drives the policies of a real one, in virtual time."""
