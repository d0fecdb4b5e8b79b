"""Find names that look like a vendor's credential or address and are not in the catalogue. Pure.

A suspicion blocks nothing: it tells the people who keep the catalogue of a vendor that it may lack.
"""

import re
from collections.abc import Iterable
from typing import Final

from billing_grpc.catalogue import load
from billing_grpc.secret_keys import KeyList, is_reserved, normalise

_MAX_LENGTH: Final = 64
"""No program reads a longer name; a value that was sent by mistake is often longer."""

_NUMBERED: Final = re.compile(r"[_.-]\d+$")
_WORD: Final = re.compile(r"[A-Z0-9]+")
_ENDINGS: Final = (
    *("_KEY", "_APIKEY", "_TOKEN", "_SECRET", "_PAT", "_CREDENTIALS", "_AUTH"),
    *("_URL", "_URI", "_BASE", "_ENDPOINT", "_HOST"),
)
_OF_MODELS: Final = {
    *("AI", "GENAI", "LLM", "LLMS", "GPT", "CHATGPT", "INFERENCE", "COMPLETIONS", "EMBEDDINGS", "ANTHROPIC"),
    *("AZUREOPENAI", "BEDROCK", "CEREBRAS", "CLAUDE", "CODEX", "COHERE", "COPILOT", "DASHSCOPE", "DEEPINFRA"),
    *("DEEPSEEK", "FIREWORKS", "GEMINI", "GIGACHAT", "GLM", "GROQ", "HUGGINGFACE", "KIMI", "LITELLM", "LLAMA"),
    *("LMSTUDIO", "MINIMAX", "MISTRAL", "MOONSHOT", "OLLAMA", "OPENCODE", "OPENROUTER", "PERPLEXITY", "QWEN"),
    *("SILICONFLOW", "VERTEX", "VLLM", "XAI", "ZHIPU"),
}
_TAILS: Final = ("AI", "LLM", "GPT")
"""Words that end in these are often a vendor's: NEWVENDORAI."""
_LONGEST_TAIL: Final = max(map(len, _TAILS))

_ORDINARY: Final = {"BONSAI", "CHAI", "DUBAI", "MUMBAI", "SAMURAI", "SHANGHAI", "SINAI", "THAI"}
_KEY: Final = "_API_KEY"
_ADDRESSES: Final = ("_BASE_URL", "_API_BASE")


def suspect_keys(env_keys: Iterable[str], keys: KeyList) -> tuple[str, ...]:
    """Return the names that look like a vendor's credential or address and are in no set, sorted, each once.

    Such a name ends like one and holds a word of language models, or it stands beside its other half: `NEW_API_KEY` beside
    `NEW_BASE_URL` or `NEW_API_BASE`. Names of the catalogue, general ones included, are no suspects.

    Args:
        env_keys: names present in an environment.
        keys: the vendor keys, which are stripped and so no suspects.
    """
    unknown = {each: name for each in env_keys if (name := _unknown(each, keys)) is not None}
    present = set(unknown.values())
    halves = {name.removesuffix(_KEY) for name in present if name.endswith(_KEY)}
    pairs = {half for half in halves if any(half + address in present for address in _ADDRESSES)}
    paired = {half + ending for half in pairs for ending in (_KEY, *_ADDRESSES)}
    return tuple(sorted(each for each, name in unknown.items() if name in paired or _is_of_models(name)))


def _unknown(variable: str, keys: KeyList) -> str | None:
    """Return the normalised name of a credential or an address that nothing knows; None for every other name."""
    if len(variable) > _MAX_LENGTH or not _NUMBERED.sub("", variable.strip().upper()).endswith(_ENDINGS):
        return None
    name = normalise(variable)
    if name is None or is_reserved(name) or keys.needs_mode(name) or name in load().entries:
        return None
    return name


def _is_of_models(name: str) -> bool:
    words = _WORD.findall(name)
    return any(
        each in _OF_MODELS or (len(each) > _LONGEST_TAIL and each.endswith(_TAILS) and each not in _ORDINARY)
        for each in words
    )
