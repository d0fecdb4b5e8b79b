"""The commands that ask a running server: each a module, loaded when it is used."""
