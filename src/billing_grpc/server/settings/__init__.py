"""Settings from the environment and the command line, checked before anything starts."""
