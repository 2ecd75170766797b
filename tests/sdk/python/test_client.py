"""The `reground` package of clients/python against the real binary. The environment is that of test_sdk.py."""

import asyncio
import os
import unittest

import openai
from reground import AsyncReground, Generation, Reground

BASE = Generation(id="base", model="reground@base", live=True)
HELLO = [{"role": "user", "content": "hello"}]


def settings(role="ADMIN"):
    key = os.environ["REGROUND_ADMIN_KEY" if role == "ADMIN" else "REGROUND_KEY"]
    return {"base_url": os.environ["REGROUND_URL"], "api_key": key, "max_retries": 0}


class Adapters(unittest.TestCase):
    def test_an_adapter_comes_answers_and_goes(self):
        client = Reground(**settings())
        self.assertEqual(client.generations(), [BASE])
        client.load_adapter("golden", "adapter")
        try:
            self.assertEqual(client.generations(), [BASE, Generation("golden", "reground@golden", False)])
            answer = client.chat.completions.create(model="reground@golden", messages=HELLO, max_tokens=2)
            self.assertEqual(answer.system_fingerprint, "golden")
            with self.assertRaises(openai.ConflictError):
                client.load_adapter("golden", "adapter")
        finally:
            client.unload_adapter("golden")
        self.assertEqual(client.generations(), [BASE])
        with self.assertRaises(openai.NotFoundError):
            client.unload_adapter("golden")

    def test_asynchronous(self):
        async def cycle():
            async with AsyncReground(**settings()) as client:
                await client.load_adapter("later", "adapter")
                names = [generation.id for generation in await client.generations()]
                await client.unload_adapter("later")
                return names

        self.assertIn("later", asyncio.run(cycle()))

    def test_a_client_may_not(self):
        with self.assertRaises(openai.PermissionDeniedError):
            Reground(**settings("CLIENT")).load_adapter("golden", "adapter")

    def test_the_environment_names_the_server(self):
        os.environ["REGROUND_API_KEY"] = os.environ["REGROUND_KEY"]
        try:
            self.assertIn(BASE, Reground().generations())
        finally:
            del os.environ["REGROUND_API_KEY"]


if __name__ == "__main__":
    unittest.main()
