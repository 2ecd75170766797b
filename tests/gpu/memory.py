"""Memory of the GPU and of a process."""

import shutil
import subprocess
import threading
import time
from pathlib import Path

from report import ensure


def resident(pid):
    """Bytes of a process in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise KeyError("VmRSS")


class Gpu:
    """One card, as nvidia-smi sees it: all processes on it together, so that nothing else should run there."""

    def __init__(self, device):
        ensure(shutil.which("nvidia-smi"), "there is no nvidia-smi, so there is no card; `--device cpu` is the dry run")
        self.number = device.partition(":")[2] or "0"
        self.name, self.driver = self.ask("name"), self.ask("driver_version")

    def ask(self, what):
        command = ["nvidia-smi", "-i", self.number, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def used(self):
        """Bytes in use."""
        return int(self.ask("memory.used")) << 20

    def total(self):
        """Bytes in all."""
        return int(self.ask("memory.total")) << 20


class Peak:
    """The most that `read` gives inside a `with`, looked at ten times a second, less what it gave before."""

    def __init__(self, read):
        self.read, self.before, self.most = read, read(), 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self):
        while not self.done.wait(0.1):
            self.most = max(self.most, self.read() - self.before)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def settled(read, seconds=5.0):
    """The least that `read` gives within some seconds: what is freed is freed a moment later."""
    least, end = read(), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.25)
        least = min(least, read())
    return least
