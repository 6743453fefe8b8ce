"""Errors whose message is meant for the user."""


class ConfigError(ValueError):
    """A setting can't work. The message names the setting, its value and what is allowed."""
