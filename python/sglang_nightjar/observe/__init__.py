"""What people and scripts see of a running server: status, decisions, metrics, and the commands that ask for them."""
