"""Apply, roll back and list the migrations of the schema: raw SQL files, run by yoyo under an advisory lock."""

from billing_grpc.storage.migrations.database import run_script
from billing_grpc.storage.migrations.files import SERVICE_ROLE, directory, grants, names
from billing_grpc.storage.migrations.runner import MigrationStatus, down, status, up

__all__ = ["SERVICE_ROLE", "MigrationStatus", "directory", "down", "grants", "names", "run_script", "status", "up"]
