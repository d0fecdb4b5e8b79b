"""The server: it answers the contract over gRPC from a repository and an org default."""
