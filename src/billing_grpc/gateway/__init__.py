"""The HTTP face of a server, for browsers and curl: a process of its own, without rights of its own."""
