"""Callers: the names by which the server knows them, and what each role may call."""
