"""A protoc plugin that generates Python stubs into a private package.

protoc's Python output imports its siblings by their proto path (`from molecule.billing.v1 import ...`), which would
claim the top-level package `molecule`; no option of protoc changes that. This plugin hands the request to the compiler
in grpcio-tools (messages, their types, gRPC stubs) and to mypy-protobuf (types of the gRPC stubs), and rewrites those
imports. Run by `buf generate`; reads a CodeGeneratorRequest from standard input, writes the response to standard output.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

PACKAGE = "billing_grpc._gen"
OUR_IMPORT = re.compile(r"^(from|import) (molecule\.)", re.MULTILINE)


def privatise(text: str) -> str:
    """Return the generated module with its imports pointing into the private package."""
    return OUR_IMPORT.sub(rf"\1 {PACKAGE}.\2", text)


def generated(request: CodeGeneratorRequest, out: Path) -> Iterator[tuple[str, str]]:
    """Run the compiler and yield (path, text) of every module, package markers included."""
    descriptors = out / "request.binpb"
    descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
    plugin = Path(sys.executable).with_name("protoc-gen-mypy_grpc")
    status = protoc.main(
        [
            "protoc",
            f"--descriptor_set_in={descriptors}",
            f"--plugin=protoc-gen-mypy_grpc={plugin}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out={out}",
            *request.file_to_generate,
        ]
    )
    if status != 0:
        sys.exit(status)
    for path in sorted(out.rglob("*.py*")):
        yield path.relative_to(out).as_posix(), privatise(path.read_text())
    packages = {parent for name in request.file_to_generate for parent in Path(name).parents}
    for package in sorted(packages):
        yield (package / "__init__.py").as_posix(), '"""Generated; see tools/protoc_gen_private_python.py."""\n'


def main() -> None:
    """Answer one request of the plugin protocol."""
    request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    response = CodeGeneratorResponse(supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
    with tempfile.TemporaryDirectory() as out:
        for name, content in generated(request, Path(out)):
            response.file.add(name=name, content=content)
    sys.stdout.buffer.write(response.SerializeToString())


if __name__ == "__main__":
    main()
