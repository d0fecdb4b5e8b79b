"""The processes of a server: signals, workers and their supervisor."""
