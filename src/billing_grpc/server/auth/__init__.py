"""Authentication and roles: the known principals, and the methods that each role may call."""
