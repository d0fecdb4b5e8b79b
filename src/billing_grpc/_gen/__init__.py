"""Generated; see tools/protoc_gen_private_python.py."""
