"""The names that files of environments hold."""

import pytest

from billing_grpc.cli.variable_names import names_of_text

MANIFEST = b"""
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      containers:
        - name: agent
          env:
            - name: ANTHROPIC_BASE_URL
              value: https://mine
            - {name: OPENAI_API_KEY, valueFrom: {secretKeyRef: {name: keys, key: HF_TOKEN}}}
---
kind: Secret
stringData:
  XAI_API_KEY: sk-secret
  "ZAI_API_KEY": sk-secret
  dotenv: |
    export KIMI_API_KEY=sk-secret
"""

HELD = {
    "env": (b"PATH=/bin\nOPENAI_API_KEY=sk\n", {"PATH", "OPENAI_API_KEY"}),
    "env -0": (b"PATH=/bin\0OPENAI_API_KEY=a\nb\0", {"PATH", "OPENAI_API_KEY"}),
    "a byte order mark and CRLF": (b"\xef\xbb\xbfOPENAI_API_KEY=sk\r\nHF_TOKEN=x\r\n", {"OPENAI_API_KEY", "HF_TOKEN"}),
    "UTF-16, as PowerShell writes it": ("OPENAI_API_KEY=sk\r\n".encode("utf-16"), {"OPENAI_API_KEY"}),
    "export": (b"export OPENAI_API_KEY=sk\n  export  HF_TOKEN = x\n", {"OPENAI_API_KEY", "HF_TOKEN"}),
    "declare": (b'declare -x OPENAI_API_KEY="sk"\n', {"OPENAI_API_KEY"}),
    "setenv": (b"setenv OPENAI_API_KEY sk\n", {"OPENAI_API_KEY"}),
    "a Dockerfile": (b"ENV OPENAI_API_KEY sk\nENV HF_TOKEN=x\n", {"OPENAI_API_KEY", "HF_TOKEN"}),
    "quotes": (b"\"OPENAI_API_KEY\"=\"sk\"\n'HF_TOKEN'='x'\n", {"OPENAI_API_KEY", "HF_TOKEN"}),
    "names alone": (b"OPENAI_API_KEY\nhf_token\n", {"OPENAI_API_KEY", "HF_TOKEN"}),
    "a colon": (b"OPENAI_API_KEY: sk\n", {"OPENAI_API_KEY"}),
    "JSON on one line": (b'{"OPENAI_API_KEY": "sk", "HF_TOKEN": "x"}', {"OPENAI_API_KEY", "HF_TOKEN"}),
    "JSON of a manifest": (b'{"env": [{"name": "OPENAI_API_KEY", "value": "sk"}]}', {"OPENAI_API_KEY"}),
    "a manifest": (
        MANIFEST,
        {"ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "HF_TOKEN", "XAI_API_KEY", "ZAI_API_KEY", "KIMI_API_KEY"},
    ),
    "a mapping on one line": (
        b"stringData: {OPENAI_API_KEY: sk, HF_TOKEN: x}\n- {name: XAI_API_KEY, value: x}\n",
        {"OPENAI_API_KEY", "HF_TOKEN", "XAI_API_KEY"},
    ),
    "a tag and an anchor": (b"- name: !!str OPENAI_API_KEY\n- name: &token HF_TOKEN\n", {"OPENAI_API_KEY", "HF_TOKEN"}),
    "the prefix of envFrom": (
        b"envFrom:\n- prefix: OPENAI_\n  secretRef: {name: s}\n---\nstringData:\n  API_KEY: sk\n",
        {"API_KEY", "OPENAI_API_KEY"},
    ),
    "the prefix of envFrom in JSON": (
        b'{"data": {"TOKEN": "x"}, "envFrom": [{"prefix": "hf_", "secretRef": {"name": "s"}}]}',
        {"TOKEN", "HF_TOKEN"},
    ),
    "bytes that are no text": (b"OPENAI_API_KEY=\xff\n\xffHF_TOKEN=x\n", {"OPENAI_API_KEY", "HF_TOKEN"}),
}


@pytest.mark.parametrize(("text", "names"), HELD.values(), ids=HELD)
def test_every_name_is_found(text: bytes, names: set[str]) -> None:
    found = names_of_text(text)
    assert names <= found.written | found.prefixed


@pytest.mark.parametrize(
    "text",
    [
        b"# OPENAI_API_KEY=sk\n",
        b"\xef\xbb\xbf# OPENAI_API_KEY=sk\n",
        b"  # OPENAI_API_KEY\n",
        b"KEY=${OPENAI_API_KEY}\n",
        b"",
        b"\n\n",
    ],
)
def test_a_comment_and_a_value_hold_no_name(text: bytes) -> None:
    assert "OPENAI_API_KEY" not in names_of_text(text).written


@pytest.mark.parametrize(
    "text",
    [
        b'CONFIG={"key": "SECRET_VALUE", "name": "SECRET_VALUE"}\n',
        b"export CONFIG = {SECRET_VALUE: 1, x: 2}\n",
        b"declare -x CONFIG=\"{'SECRET_VALUE': 1}\"\n",
        b"ENV CONFIG SECRET_VALUE\n",
        b"setenv CONFIG SECRET_VALUE\n",
        b"CONFIG: SECRET_VALUE\n",
    ],
)
def test_a_value_is_no_name(text: bytes) -> None:
    found = names_of_text(text).written
    assert "CONFIG" in found
    assert not [name for name in found if "SECRET_VALUE" in name]
