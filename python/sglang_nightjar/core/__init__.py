"""What is true without an engine: messages, plans, planners. Imports neither torch, zmq nor sglang."""
