"""The one place that holds the version; setup.py reads it as text, so keep it one plain assignment."""

__version__ = "0.1.0"
