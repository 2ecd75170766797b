"""`Reground` and `AsyncReground`: `openai.OpenAI` and `openai.AsyncOpenAI` with more calls."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai

DEFAULT_URL = "http://127.0.0.1:8080/v1"


@dataclass(frozen=True)
class Generation:
    """What can answer: the base model, or the base with one adapter."""

    id: str
    """`base`, or the adapter's name."""
    model: str
    """What to put into `model` to get this generation, whatever is live."""
    live: bool
    """Whether it answers when a request names no generation."""


def _base_url(url: str) -> str:
    """The base URL of a server: `REGROUND_URL` may be without `/v1`, as the command line takes it, too."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith("/v1") else f"{path}/v1"))


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The server and the key from the environment, unless they are given.

    The `openai` client refuses to start without a key; a server on loopback without keys takes any.
    """
    if settings.get("base_url") is None:
        settings["base_url"] = _base_url(os.environ.get("REGROUND_URL", DEFAULT_URL))
    if settings.get("api_key") is None:
        settings["api_key"] = os.environ.get("REGROUND_API_KEY", "none")
    return settings


def _generations(models: list[Any]) -> list[Generation]:
    """The entries of the model list that name a generation; the first entry is the live one's short name."""
    return [
        Generation(id=model.generation, model=model.id, live=model.live)
        for model in models
        if model.id.endswith(f"@{model.generation}")
    ]


class Reground(openai.OpenAI):
    """A client of a Reground server: everything that `openai.OpenAI` has, and adapters."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**_settings(settings))

    def load_adapter(self, name: str, path: str) -> None:
        """Loads the PEFT adapter in a directory of the server as generation `name`. Traffic does not change."""
        self.post("/load_lora_adapter", cast_to=str, body={"lora_name": name, "lora_path": path})

    def unload_adapter(self, name: str) -> None:
        """Takes a generation out; answers under way keep it until they are done."""
        self.post("/unload_lora_adapter", cast_to=str, body={"lora_name": name})

    def generations(self) -> list[Generation]:
        """What is loaded."""
        return _generations(list(self.models.list()))


class AsyncReground(openai.AsyncOpenAI):
    """As `Reground`, with coroutines."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**_settings(settings))

    async def load_adapter(self, name: str, path: str) -> None:
        """Loads the PEFT adapter in a directory of the server as generation `name`. Traffic does not change."""
        await self.post("/load_lora_adapter", cast_to=str, body={"lora_name": name, "lora_path": path})

    async def unload_adapter(self, name: str) -> None:
        """Takes a generation out; answers under way keep it until they are done."""
        await self.post("/unload_lora_adapter", cast_to=str, body={"lora_name": name})

    async def generations(self) -> list[Generation]:
        """What is loaded."""
        return _generations([model async for model in self.models.list()])
