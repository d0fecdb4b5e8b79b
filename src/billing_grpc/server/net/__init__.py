"""Addresses to listen on, and certificates."""
