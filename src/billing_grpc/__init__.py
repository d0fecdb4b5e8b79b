"""Decide, for every workspace of an AI platform, who pays for its language-model calls."""

__version__ = "0.1.0"
