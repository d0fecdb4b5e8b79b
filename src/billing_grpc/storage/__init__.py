"""Where overrides are kept: the `Repository` protocol, its implementations and the migrations."""
