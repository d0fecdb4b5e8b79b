"""The embedded Postgres: started by this package if no database is configured, for a laptop and for tests."""

from billing_grpc.storage.embedded.server import EmbeddedPostgres, default_directory

__all__ = ["EmbeddedPostgres", "default_directory"]
