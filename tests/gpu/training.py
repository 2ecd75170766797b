"""Training: tokens and pairs a second, and the most memory, against TRL's DPOTrainer on the same card and data.

Both train the same random checkpoint from the same adapter on the same pairs, base in bf16 on a GPU. What
learner/scripts/trl_compare/README.md says of how it is counted holds here, but that memory is the card's, runtime included.
"""

import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path

import checkpoint
from memory import Peak, resident
from report import NotRun, ensure
from settings import RUN

BATCH = 16
# TRL's settings on a GPU; the fastest counts for speed, the smallest for memory.
TRL = {
    "forward passes of 16": ["--bf16", "--bf16-weights", "--micro", "16"],
    "forward passes of 4": ["--bf16", "--bf16-weights", "--micro", "4"],
    "of 4, gradient checkpointing": ["--bf16", "--bf16-weights", "--micro", "4", "--checkpointing"],
}
# On a CPU bf16 is slow.
TRL_DRY = {"f32, forward passes of 16": ["--micro", "16"]}
SPEED, MEMORY = 0.8, 1.0


def cases(bench):
    shapes = (("pocket", 64),) if bench.is_dry else (("smolvlm-256m", 256), ("smolvlm-2.2b", 64))
    for shape, pairs in shapes:
        here = {}
        yield f"{shape}", lambda shape=shape, pairs=pairs, here=here: ours(bench, shape, pairs, here)
        yield f"{shape} against TRL", lambda shape=shape, pairs=pairs, here=here: against(bench, shape, pairs, here)
    yield "one step at 7B shape", lambda: seven(bench)


def ours(bench, shape, pairs, here, micro=16, most=0):
    fixture = checkpoint.write(bench, shape, pairs)
    directory = bench.work / f"run-{shape}"
    settings = RUN.format(fixture=fixture, adapter="new", epochs=2.0, batch=BATCH, micro=micro, most=most, threads=0)
    with Peak(bench.gpu.used if bench.gpu else children) as memory:
        events = bench.train(directory, settings, fixture / "pairs.jsonl", fixture)
    shutil.rmtree(directory)
    steps = [event for event in events if event["event"] == "step"]
    ensure(steps, "no step was made")
    ensure(all(step["loss"] == step["loss"] for step in steps), "a loss is no number")
    # The first step compiles and allocates.
    counted = steps[1:] or steps
    here.update({
        "steps": len(steps), "tokens/s": statistics.median(step["tokens/s"] for step in counted),
        "pairs/s": statistics.median(step["pairs/s"] for step in counted), "peak MiB": memory.most >> 20,
    })
    return here


def against(bench, shape, pairs, here):
    if not here:
        raise NotRun("there is nothing to compare with")
    works = subprocess.run([bench.trl_python, "-c", "import torch, transformers, peft, trl"], capture_output=True, text=True)
    if works.returncode:
        raise NotRun(f"{bench.trl_python} lacks something: {works.stderr.strip().splitlines()[-1]}")
    fixture = checkpoint.write(bench, shape, pairs)
    if not (fixture / "adapter").exists():
        shutil.copytree(fixture / "new", fixture / "adapter")
    runs = {name: trl(bench, fixture, flags) for name, flags in (TRL_DRY if bench.is_dry else TRL).items()}
    fastest = max(runs, key=lambda name: runs[name]["pairs/s"])
    smallest = min(runs, key=lambda name: runs[name]["peak MiB"])
    speed = here["pairs/s"] / runs[fastest]["pairs/s"]
    memory = here["peak MiB"] / runs[smallest]["peak MiB"]
    figures = {
        "times its pairs/s": speed, f"of TRL's fastest ({fastest}), pairs/s": runs[fastest]["pairs/s"],
        "times its memory": memory, f"of TRL's smallest ({smallest}), MiB": runs[smallest]["peak MiB"],
    }
    ensure(speed >= SPEED and memory <= MEMORY, f"{figures}, wanted are {SPEED} and {MEMORY}")
    return figures


def trl(bench, fixture, flags):
    script = bench.root / "learner/scripts/trl_compare/trl_side.py"
    command = [bench.trl_python, str(script), str(fixture), "--epochs", "2", "--batch", str(BATCH), *flags]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if bench.gpu:
        command.append("--cuda")
        environment["CUDA_VISIBLE_DEVICES"] = bench.gpu.number
    with Peak(bench.gpu.used if bench.gpu else children) as memory:
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
    ensure(run.returncode == 0, f"TRL failed: {run.stderr[-1500:]}")
    steps = json.loads(run.stdout.splitlines()[-1])["steps"]
    return {"pairs/s": BATCH / statistics.median(steps[1:]), "peak MiB": memory.most >> 20}


def seven(bench):
    if bench.is_dry:
        raise NotRun("a CPU would take an hour and 60 GB")
    if bench.gpu.total() < 40 << 30 or shutil.disk_usage(bench.work).free < 24 << 30:
        raise NotRun("wants a card of 40 GiB and 24 GiB of disk")
    figures = ours(bench, "7b", BATCH, {}, micro=4, most=1)
    shutil.rmtree(bench.work / f"7b-{BATCH}")
    return figures


def children():
    """Bytes that the processes started from here have in memory."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            try:
                total += resident(pid)
            except (FileNotFoundError, KeyError, ProcessLookupError):  # It has just ended.
                pass
    return total
