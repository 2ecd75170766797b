"""Files and fine-tuning jobs through the official `openai` package, unchanged, against the real binary."""

import base64
import json
import os
import time
import unittest

import openai

URL = os.environ["REGROUND_URL"]
KEY = os.environ["REGROUND_ADMIN_KEY"]

with open(os.environ["REGROUND_IMAGE"], "rb") as file:
    IMAGE = "data:image/png;base64," + base64.b64encode(file.read()).decode()


def pair(number):
    said = lambda text: [{"role": "assistant", "content": text}]
    content = [
        {"type": "image_url", "image_url": {"url": IMAGE}},
        {"type": "text", "text": f"what color is circle {number}?"},
    ]
    return {
        "input": {"messages": [{"role": "user", "content": content}]},
        "preferred_output": said("the circle is red."),
        "non_preferred_output": said("the circle is blue."),
    }


class FineTuning(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=120)

    def upload(self):
        content = "".join(json.dumps(pair(number)) + "\n" for number in range(4)).encode()
        return self.client.files.create(file=("pairs.jsonl", content), purpose="fine-tune"), content

    def test_files(self):
        file, content = self.upload()
        self.assertEqual((file.object, file.filename, file.bytes, file.status), ("file", "pairs.jsonl", len(content), "processed"))
        self.assertEqual(self.client.files.retrieve(file.id), file)
        self.assertIn(file.id, [listed.id for listed in self.client.files.list(purpose="fine-tune")])
        self.assertEqual(self.client.files.content(file.id).read(), content)
        self.assertTrue(self.client.files.delete(file.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            self.client.files.retrieve(file.id)
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.files.create(file=("bad.jsonl", b"{}\n"), purpose="fine-tune")
        self.assertEqual(raised.exception.code, "invalid_file")

    def test_a_job(self):
        file, _ = self.upload()
        jobs = self.client.fine_tuning.jobs
        job = jobs.create(
            model="reground",
            training_file=file.id,
            seed=3,
            metadata={"team": "tests"},
            method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 50, "batch_size": 2}}},
        )
        self.assertEqual((job.object, job.training_file, job.seed), ("fine_tuning.job", file.id, 3))
        self.assertIn(job.status, ("queued", "running"))
        self.assertEqual(job.method.dpo.hyperparameters.beta, 0.2)
        self.assertEqual(job.metadata, {"team": "tests"})
        while not any(event.type == "metrics" for event in jobs.list_events(job.id, limit=50)):
            self.assertIn(jobs.retrieve(job.id).status, ("queued", "running"))
            time.sleep(0.05)
        self.assertEqual(jobs.pause(job.id).status, "paused")
        self.assertEqual(jobs.resume(job.id).status, "queued")
        self.assertIn(job.id, [listed.id for listed in jobs.list(limit=5)])
        cancelled = jobs.cancel(job.id)
        self.assertEqual(cancelled.status, "cancelled")
        self.assertIsNotNone(cancelled.finished_at)
        self.assertIsNone(cancelled.fine_tuned_model)
        self.assertIsNone(cancelled.error)
        events = list(jobs.list_events(job.id, limit=2))
        self.assertGreater(len(events), 2, "the SDK turns the pages")
        self.assertEqual(len({event.id for event in events}), len(events))
        self.assertTrue(all(event.object == "fine_tuning.job.event" for event in events))
        list(jobs.checkpoints.list(job.id))

    def test_what_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.fine_tuning.jobs.create(model="reground", training_file="file-none")
        self.assertEqual(raised.exception.param, "training_file")
        with self.assertRaises(openai.NotFoundError):
            self.client.fine_tuning.jobs.retrieve("ftjob-none")


if __name__ == "__main__":
    unittest.main()
