"""Storage on PostgreSQL: a bounded connection pool, the SQL, and the driver's errors translated into ours."""

from billing_grpc.postgres.pool import parse_address
from billing_grpc.postgres.repository import POOL_SIZE, PostgresRepository

__all__ = ["POOL_SIZE", "PostgresRepository", "parse_address"]
