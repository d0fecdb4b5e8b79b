"""The conformance vectors, and a server that plays them: for tests of clients in any language, never for production.

The format of the vectors is described in `conformance/README.md` of the source tree.
"""
