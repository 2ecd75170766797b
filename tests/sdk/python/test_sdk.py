"""The official `openai` package, unchanged, against the real binary.

The environment names the server: REGROUND_URL (base URL with /v1) and REGROUND_KEY; REGROUND_NARROW_URL is a second
server whose queue holds one request; REGROUND_IMAGE is a PNG file.
"""

import base64
import concurrent.futures
import json
import os
import unittest
from typing import Literal

import openai
import pydantic

URL = os.environ["REGROUND_URL"]
NARROW_URL = os.environ["REGROUND_NARROW_URL"]
KEY = os.environ["REGROUND_KEY"]
MODEL = "reground"
END_OF_TURN = {"2": -100}
"""Forbids the end-of-turn token of the golden checkpoint, so that every answer is as long as it may be."""

with open(os.environ["REGROUND_IMAGE"], "rb") as file:
    IMAGE = "data:image/png;base64," + base64.b64encode(file.read()).decode()


def client(url=URL, key=KEY):
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)


def said(text="what color is the circle?"):
    return [{"role": "user", "content": text}]


class Thing(pydantic.BaseModel):
    color: Literal["red", "green"]
    count: Literal[1, 2, 3]
    round: bool


class Chat(unittest.TestCase):
    def ask(self, **more):
        settings = {"model": MODEL, "messages": said(), "max_tokens": 12, "temperature": 0, "logit_bias": END_OF_TURN}
        return client().chat.completions.create(**{**settings, **more})

    def test_text(self):
        answer = self.ask()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertTrue(answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 12)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 12)
        self.assertEqual(answer.system_fingerprint, "base")

    def test_image(self):
        def look(url):
            parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}, {"type": "text", "text": "what is it?"}]
            return self.ask(messages=[{"role": "user", "content": parts}])

        seen = look(IMAGE)
        blind = self.ask(messages=said("what is it?"))
        self.assertGreater(seen.usage.prompt_tokens, blind.usage.prompt_tokens)
        self.assertNotEqual(seen.choices[0].message.content, blind.choices[0].message.content)

    def test_stream_with_usage(self):
        whole = self.ask()
        chunks = list(self.ask(stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage, whole.usage)
        self.assertTrue(all(chunk.usage is None for chunk in chunks[:-1]))
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)

    def test_stream_helper(self):
        whole = self.ask().choices[0].message.content
        # The helper raises for an answer that ends because of its length, so this one ends at a stop string.
        stop = next(character for character in whole[2:] if character not in whole[:2] and character != "\ufffd")
        with client().chat.completions.stream(
            model=MODEL, messages=said(), max_tokens=12, temperature=0, logit_bias=END_OF_TURN, stop=stop
        ) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertIn("content.delta", kinds)
        self.assertEqual(final.choices[0].message.content, whole.split(stop)[0])

    def test_asynchronous(self):
        import asyncio

        async def ask():
            async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as caller:
                return await caller.chat.completions.create(
                    model=MODEL, messages=said(), max_tokens=12, temperature=0, logit_bias=END_OF_TURN
                )

        self.assertEqual(asyncio.run(ask()).choices[0].message.content, self.ask().choices[0].message.content)

    def test_log_probabilities(self):
        content = self.ask(logprobs=True, top_logprobs=3).choices[0].logprobs.content
        self.assertGreater(len(content), 0)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(bytes(token.bytes).decode(errors="replace"), token.token)

    def test_n_and_seed(self):
        first = self.ask(n=3, seed=7, temperature=1.2)
        self.assertEqual([choice.index for choice in first.choices], [0, 1, 2])
        texts = [choice.message.content for choice in first.choices]
        self.assertEqual(len(set(texts)), 3)
        again = self.ask(n=3, seed=7, temperature=1.2)
        self.assertEqual(texts, [choice.message.content for choice in again.choices])

    def test_stop(self):
        whole = self.ask().choices[0].message.content
        stop = next(character for character in whole[2:] if character not in whole[:2] and character != "\ufffd")
        answer = self.ask(stop=[stop])
        self.assertEqual(answer.choices[0].message.content, whole.split(stop)[0])
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_json_schema(self):
        schema = {**Thing.model_json_schema(), "additionalProperties": False}
        answer = self.ask(
            response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}},
            max_tokens=400,
            logit_bias={},
        )
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        Thing.model_validate(json.loads(answer.choices[0].message.content))

    def test_parse(self):
        answer = client().chat.completions.parse(
            model=MODEL, messages=said(), response_format=Thing, max_tokens=400, temperature=1, seed=3
        )
        self.assertIsInstance(answer.choices[0].message.parsed, Thing)

    def test_conversation_given_back(self):
        first = self.ask().choices[0].message
        turns = [*said(), first, {"role": "user", "content": "and now?"}]
        # What the model said may hold half characters; it is text like any other.
        self.assertTrue(self.ask(messages=turns).choices[0].message.content)

    def test_headers(self):
        raw = client().chat.completions.with_raw_response.create(model=MODEL, messages=said(), max_tokens=2)
        self.assertTrue(raw.headers["x-request-id"])
        self.assertEqual(raw.headers["x-reground-generation"], "base")
        self.assertEqual(raw.parse()._request_id, raw.headers["x-request-id"])


class Models(unittest.TestCase):
    def test_list(self):
        self.assertEqual([model.id for model in client().models.list()], ["reground", "reground@base"])

    def test_retrieve(self):
        self.assertEqual(client().models.retrieve("reground@base").id, "reground@base")


class Errors(unittest.TestCase):
    def ask(self, caller=None, **more):
        caller = caller or client()
        return caller.chat.completions.create(**{"model": MODEL, "messages": said(), "max_tokens": 2, **more})

    def test_bad_request(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            self.ask(temperature=7)
        self.assertEqual(raised.exception.status_code, 400)
        self.assertEqual(raised.exception.param, "temperature")
        self.assertEqual(raised.exception.code, "invalid_value")
        self.assertEqual(raised.exception.type, "invalid_request_error")

    def test_wrong_key(self):
        with self.assertRaises(openai.AuthenticationError) as raised:
            self.ask(client(key="sk-wrong"))
        self.assertEqual(raised.exception.status_code, 401)
        self.assertEqual(raised.exception.code, "invalid_api_key")

    def test_unknown_model(self):
        with self.assertRaises(openai.NotFoundError) as raised:
            self.ask(model="gpt-4o")
        self.assertEqual(raised.exception.status_code, 404)
        self.assertEqual(raised.exception.code, "model_not_found")
        with self.assertRaises(openai.NotFoundError):
            client().models.retrieve("gpt-4o")

    def test_error_before_a_stream(self):
        with self.assertRaises(openai.BadRequestError):
            list(self.ask(stream=True, top_p=5))

    def test_full_queue(self):
        def ask(_):
            try:
                self.ask(client(NARROW_URL), max_tokens=600, logit_bias=END_OF_TURN)
            except openai.RateLimitError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            errors = [error for error in pool.map(ask, range(12)) if error]
        self.assertGreaterEqual(len(errors), 1)
        self.assertLess(len(errors), 12)
        for error in errors:
            self.assertEqual(error.status_code, 429)
            self.assertGreaterEqual(int(error.response.headers["retry-after"]), 1)

    def test_a_full_queue_is_waited_for(self):
        patient = openai.OpenAI(base_url=NARROW_URL, api_key=KEY, max_retries=20, timeout=120)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: self.ask(patient, max_tokens=100, logit_bias=END_OF_TURN), range(4)))
        self.assertTrue(all(answer.usage.completion_tokens == 100 for answer in answers))


if __name__ == "__main__":
    unittest.main()
