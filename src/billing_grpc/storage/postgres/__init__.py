"""Storage on PostgreSQL: a bounded connection pool, the SQL, and the translation of the driver's errors."""

from billing_grpc.storage.postgres.address import parse_address
from billing_grpc.storage.postgres.pool import PoolStats
from billing_grpc.storage.postgres.repository import POOL_SIZE, PostgresRepository

__all__ = ["POOL_SIZE", "PoolStats", "PostgresRepository", "parse_address"]
