"""The programs and libraries whose names the catalogue holds."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Program:
    """A program or a library that reads names of the catalogue.

    Attributes:
        title: its own name.
        in_workspaces: whether it runs in workspaces, by itself or beneath an agent program; `agents` holds its names.
    """

    title: str
    in_workspaces: bool = True


PROGRAMS: Final = {
    "aider": Program("aider"),
    "ai-sdk": Program("AI SDK, beneath opencode"),
    "anthropic-sdk": Program("Anthropic SDK"),
    "claude-code": Program("Claude Code"),
    "codex": Program("Codex"),
    "gemini-cli": Program("Gemini CLI"),
    "google-genai": Program("Google Gen AI SDK"),
    "hermes-agent": Program("Hermes"),
    "langchain": Program("LangChain", in_workspaces=False),
    "litellm": Program("LiteLLM", in_workspaces=False),
    "openai-sdk": Program("OpenAI SDK"),
    "openclaw": Program("OpenClaw"),
    "opencode": Program("opencode, with models.dev"),
    "pi-ai": Program("pi-ai, beneath OpenClaw"),
}
"""By the id that `names.tsv` uses."""
