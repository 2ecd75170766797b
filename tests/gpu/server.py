"""One process of `reground serve` on a free port, and questions to it."""

import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import ensure

# Loading a large model from a cold disk takes its time.
START_S = 300
ANSWER_S = 300


class Refused(Exception):
    """The server answered with an error."""


class Server:
    def __init__(self, program, sections, environment, work):
        self.directory = Path(tempfile.mkdtemp(dir=work))
        sections = {**sections, "data": {"dir": str(self.directory / "data")}}
        (self.directory / "config.toml").write_text("".join(map(section, sections.items())))
        self.log = open(self.directory / "log", "w+")
        self.process = subprocess.Popen(
            [str(program), "serve", "--port", "0"], cwd=self.directory, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=self.log, text=True,
        )

    def __enter__(self):
        line = self.process.stdout.readline()
        self.url = line.strip().removeprefix("reground listens on ")
        ensure(self.url.startswith("http://"), f"the server did not start: {line}{self.tail()}")
        end = time.monotonic() + START_S
        while not self.is_ready():
            ensure(self.process.poll() is None and time.monotonic() < end, f"the server is not ready: {self.tail()}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"{self.url}/ready", timeout=5).status == 200
        except (urllib.error.URLError, TimeoutError):
            return False

    def tail(self):
        self.log.seek(0)
        return self.log.read()[-2000:]

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError as error:
            raise Refused(f"{path}: {error.code}: {error.read().decode()}") from error
        return json.loads(text) if text.startswith(("{", "[")) else text

    def ask(self, body):
        return self.post("/v1/chat/completions", body)

    def ask_all(self, bodies, at_once):
        """Answers in the order of the questions, so many asked at a time."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(self.ask, bodies))

    def load_adapter(self, name, path):
        self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    def unload_adapter(self, name):
        self.post("/v1/unload_lora_adapter", {"lora_name": name})


def section(item):
    name, values = item
    # What JSON and TOML write alike: strings, numbers, booleans.
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()) + "\n"


def tokens(answer):
    """Each token of an answer as (bytes, log-probability), with its alternatives likewise."""
    def one(entry):
        return bytes(entry["bytes"]), entry["logprob"]
    content = answer["choices"][0]["logprobs"]["content"]
    return [(*one(entry), [one(other) for other in entry["top_logprobs"]]) for entry in content]
