"""The official `openai` client, with what a Reground server adds to it."""

from reground._client import AsyncReground, Generation, Reground

__all__ = ["AsyncReground", "Generation", "Reground"]
