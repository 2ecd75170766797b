"""What examples/engines.rs measures, with llama.cpp's server: the same shape and weights, prompt, noise and greedy choice.

    python llama_cpp_speed.py LLAMA_SERVER GGUF [--tokens 64] [--rounds 2] [--threads 2]

LLAMA_SERVER is the program, built from llama.cpp's source (`cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF &&
cmake --build build --target llama-server`); GGUF is the directory that llama_cpp_convert.py has made. Times are those of a client
over loopback that reads a stream, so they contain HTTP and the decoding of a BMP, a few milliseconds. Pictures have the tower's own size.
"""

import argparse
import base64
import http.client
import json
import random
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

END_OF_TURN = 2
EDGE = 512
TOGETHER = 8
QUESTION = "describe the image"
HOST = "127.0.0.1"


def picture(seed: int) -> str:
    """Noise as the data URL of a BMP."""
    pixels = random.Random(seed).randbytes(EDGE * EDGE * 3)
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + len(pixels), 0, 0, 54, 40, EDGE, EDGE, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return "data:image/bmp;base64," + base64.b64encode(header + pixels).decode()


def ask(port: int, url: str, tokens: int, question: str = QUESTION) -> list[float]:
    """When each token came."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": [[END_OF_TURN, False]],
        "stream": True,
        # A token of random weights can be no text at all; its log-probability says that it came.
        "logprobs": True,
    }
    connection = http.client.HTTPConnection(HOST, port, timeout=600)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {response.read().decode()}")
    times = []
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        for choice in event["choices"]:
            times += [time.perf_counter()] * len((choice.get("logprobs") or {}).get("content") or [])
    connection.close()
    if len(times) != tokens:
        raise SystemExit(f"{len(times)} tokens instead of {tokens}")
    return times


def measure(port: int, urls: list[str], tokens: int):
    """Seconds to the first token of the first and of the last answer, tokens a second while all answer, seconds in all."""
    with ThreadPoolExecutor(len(urls)) as pool:
        began = time.perf_counter()
        answers = list(pool.map(lambda url: ask(port, url, tokens), urls))
    firsts = [times[0] - began for times in answers]
    lasts = [times[-1] - began for times in answers]
    start, end = max(firsts), min(lasts)
    if end <= start:
        start, end = min(firsts), max(lasts)
    inside = sum(start < at - began <= end for times in answers for at in times)
    return min(firsts), max(firsts), inside / (end - start), max(lasts)


def wait_until_ready(server: subprocess.Popen, port: int):
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit("the server ended")
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server is not ready")


def peak_mib(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def report(port: int, pid: int, tokens: int, rounds: int):
    measure(port, [picture(1_000_000)], tokens)
    seed = 0
    for what, together, different in (
        ("alone", 1, 1),
        (f"{TOGETHER} at once, {TOGETHER} pictures", TOGETHER, TOGETHER),
        (f"{TOGETHER} at once about one picture", TOGETHER, 1),
    ):
        best = None
        for _ in range(rounds):
            seed += TOGETHER
            urls = [picture(seed + 1000 * (at % different)) for at in range(together)]
            measured = measure(port, urls, tokens)
            best = min(best or measured, measured, key=lambda one: one[3])
        first, last, rate, whole = best
        print(f"{what}: first token {first:.3f} s (last of them {last:.3f} s), decode {rate:.1f} tokens/s, whole {whole:.3f} s", flush=True)
    url = picture(2_000_000)
    times = []
    for question in (QUESTION, "how many things are there?"):
        began = time.perf_counter()
        times.append(ask(port, url, tokens, question)[0] - began)
    print(f"a second question about the same picture: first token {times[1]:.3f} s after {times[0]:.3f} s")
    print(f"peak memory {peak_mib(pid)} MiB")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("server", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=18790)
    options = parser.parse_args()
    command = [options.server, "--model", options.gguf / "text.gguf", "--mmproj", options.gguf / "vision.gguf"]
    command += ["--threads", options.threads, "--parallel", TOGETHER, "--ctx-size", TOGETHER * 1024]
    command += ["--host", HOST, "--port", options.port, "--log-verbosity", 1]
    server = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(server, options.port)
        report(options.port, server.pid, options.tokens, options.rounds)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
