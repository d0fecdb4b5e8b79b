"""The catalogue of vendor names: which environment variables lead a program to a language model, and which sets block them.

The data is `names.tsv`, one line a name; docs/catalogue.md explains it. Pure, except that the file is read once.
"""

from billing_grpc.catalogue.table import RESERVED_PREFIX, Entry, Kind, NameSet, Table, digest, load, parse

__all__ = ["RESERVED_PREFIX", "Entry", "Kind", "NameSet", "Table", "digest", "load", "parse"]
