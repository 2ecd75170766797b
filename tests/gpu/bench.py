"""The machine, the program under test and the scratch directory that all checks share."""

import datetime
import importlib.util
import json
import os
import platform
import subprocess
from pathlib import Path

from memory import Gpu
from report import ensure
from server import Server


class Bench:
    def __init__(self, arguments, work):
        self.root = Path(__file__).resolve().parents[2]
        self.golden = self.root / "tests/golden/idefics3"
        self.device, self.work, self.trl_python = arguments.device, work, arguments.trl_python
        # The dry run goes through the same code with small shapes.
        self.is_dry = self.device == "cpu"
        self.gpu = None if self.is_dry else Gpu(self.device)
        built = "target/release/reground" if self.is_dry else "target/cuda/release/reground"
        self.program = (arguments.program or self.root / built).absolute()
        ensure(self.program.is_file(), f"{self.program} is not there: build it, or name one with --program")
        self.environment = {**os.environ, "LD_LIBRARY_PATH": ":".join([*libraries(self.root), os.environ.get("LD_LIBRARY_PATH", "")])}

    def machine(self):
        command = [str(self.program), "--version"]
        version = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        ensure(version.returncode == 0, f"{self.program} does not start: {version.stderr}")
        commit = subprocess.run(["git", "-C", str(self.root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        return {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "device": self.gpu.name if self.gpu else f"cpu, {os.cpu_count()} cores ({platform.machine()})",
            "driver": self.gpu.driver if self.gpu else "none",
            "program": version.stdout.strip(),
            "commit": commit.stdout.strip() or "unknown",
        }

    def serve(self, model, **sections):
        """A running server; use it in a `with`. `model` and each section are settings of config.toml."""
        quiet = {"record": {"enabled": False}, "bootstrap": {"enabled": False}, "train": {"enabled": False}}
        sections = {**quiet, **sections, "model": {"device": self.device, **model}}
        return Server(self.program, sections, self.environment, self.work)

    def golden_model(self, **model):
        return {"source": str(self.golden / "model"), "adapter_root": str(self.golden), **model}

    def train(self, directory, settings, data, images):
        """`reground train` on preference data. Its events."""
        directory.mkdir(parents=True)
        (directory / "run.toml").write_text(settings)
        command = [str(self.program), "train", "--run", str(directory), "--import", str(data), "--images", str(images)]
        run = subprocess.run([*command, "--device", self.device], env=self.environment, capture_output=True, text=True)
        ensure(run.returncode == 0, f"reground train: {run.stderr[-2000:]}{run.stdout[-500:]}")
        return [json.loads(line) for line in run.stdout.splitlines()]


def libraries(root):
    """Folders of CUDA's libraries as PyPI has them: those that .ci/cuda-build brought, and those of this Python."""
    places = [root / "target/cuda/toolkit/nvidia"]
    spec = importlib.util.find_spec("nvidia")
    places += map(Path, spec.submodule_search_locations if spec else [])
    return [str(folder) for place in places for folder in sorted(place.glob("*/lib")) if any(folder.glob("lib*.so*"))]
