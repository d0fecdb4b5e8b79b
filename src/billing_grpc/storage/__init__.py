"""The storage of overrides: the `Repository` protocol, its implementations and the migrations."""
