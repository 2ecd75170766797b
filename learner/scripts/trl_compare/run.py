"""DPO of a vision model's LoRA on the CPU: TRL's DPOTrainer and this project's trainer, side by side.

    python -m venv .venv && .venv/bin/pip install -r learner/scripts/trl_compare/requirements.txt
    .venv/bin/python learner/scripts/trl_compare/run.py pocket
    .venv/bin/python learner/scripts/trl_compare/run.py smolvlm-256m --pairs 16 --rounds 1

Run from the root of the repository. README.md says what is compared and how it is counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from settings import RUN

HERE = Path(__file__).parent
OURS = "this project"
# What could make TRL faster or smaller on a CPU.
KINDS = {
    "f32": [],
    "bf16": ["--bf16"],
    "bf16, base in bf16": ["--bf16", "--bf16-weights"],
    "bf16, gradient checkpointing": ["--bf16", "--checkpointing"],
}
SETTINGS = {
    f"TRL, {kind}, forward passes of {micro}": [*flags, "--micro", str(micro)]
    for kind, flags in KINDS.items() for micro in (16, 4, 2, 1)
}
# Those that a trial of all found fastest and smallest (and f32, which this project computes in), and the pairs of a forward
# pass that do best here.
BEST = {
    "pocket": (8, [
        "TRL, f32, forward passes of 16", "TRL, f32, forward passes of 4", "TRL, bf16, forward passes of 16",
        "TRL, bf16, base in bf16, forward passes of 16",
    ]),
    "smolvlm-256m": (2, [
        "TRL, f32, forward passes of 2", "TRL, bf16, forward passes of 2", "TRL, bf16, base in bf16, forward passes of 2",
        "TRL, bf16, base in bf16, forward passes of 1",
    ]),
}


def ours(arguments, command, fixture, epochs):
    with tempfile.TemporaryDirectory(dir=fixture) as run:
        values = {
            "fixture": fixture, "adapter": "adapter", "epochs": float(epochs), "micro": BEST[arguments.shape][0], "most": 0,
        }
        (Path(run) / "run.toml").write_text(RUN.format(**{**vars(arguments), **values}))
        out = subprocess.run([*command, "train", run, str(fixture / "pairs.jsonl")], check=True, capture_output=True, text=True)
    events = [json.loads(line) for line in out.stdout.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    (took,) = (event for event in events if event["event"] == "took")
    (started,) = (event for event in events if event["event"] == "started")
    return {
        **took, "pairs": started["examples"], "losses": [step["loss"] for step in steps],
        "steps": [arguments.batch / step["pairs/s"] for step in steps],
    }


def trl(arguments, fixture, epochs, settings):
    command = [sys.executable, str(HERE / "trl_side.py"), str(fixture), "--epochs", str(epochs)]
    command += ["--batch", str(arguments.batch), "--threads", str(arguments.threads), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}
    out = subprocess.run(command, env=environment, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{' '.join(command)}\n{out.stderr}")
    return json.loads(out.stdout.splitlines()[-1])


def fixture(arguments, command, root, pairs):
    files, out = root / "files", root / f"{arguments.shape}-{pairs}"
    if not files.exists():
        subprocess.run([*command, "files", str(files)], check=True)
    if not out.exists():
        out.mkdir()
        maker = [sys.executable, str(HERE / "fixture.py"), arguments.shape, str(files), str(out), "--pairs", str(pairs)]
        made = subprocess.run(maker, capture_output=True, text=True)
        if made.returncode:
            sys.exit(made.stderr)
    return out


def same_work(arguments, command, root):
    """One batch, several steps on it: the order of the data is no matter, so both must see the same losses."""
    batch = 16 if arguments.shape == "pocket" else 2
    arguments = argparse.Namespace(**{**vars(arguments), "batch": batch})
    made = fixture(arguments, command, root, batch)
    here, there = ours(arguments, command, made, 3)["losses"], trl(arguments, made, 3, ["--micro", "2"])["losses"]
    print("loss of three steps on one batch, TRL in f32: ", ", ".join(f"{loss:.6f}" for loss in there))
    print("loss of three steps on one batch, here:        ", ", ".join(f"{loss:.6f}" for loss in here))
    worst = max(abs(a - b) for a, b in zip(here, there, strict=True))
    assert worst < 1e-3, f"the two do not compute the same: {worst}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=["pocket", "smolvlm-256m"])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="pairs in an optimiser step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", default="", help="names of TRL's settings, separated by ; or all")
    parser.add_argument("--skip-check", action="store_true", help="do not compare losses first")
    parser.add_argument("--binary", help="a built trl_compare example")
    parser.add_argument("--work", type=Path, help="directory for model and pairs; kept. Default: a temporary one")
    arguments = parser.parse_args()
    command = [arguments.binary] if arguments.binary else [
        "cargo", "run", "--quiet", "--release", "-p", "reground-learner", "--example", "trl_compare", "--",
    ]
    names = arguments.settings.split(";") if arguments.settings else BEST[arguments.shape][1]
    settings = {name: SETTINGS[name] for name in (SETTINGS if arguments.settings == "all" else names)}
    with tempfile.TemporaryDirectory() as temporary:
        root = (arguments.work or Path(temporary)).absolute()
        root.mkdir(exist_ok=True, parents=True)
        if not arguments.skip_check:
            same_work(arguments, command, root)
        made = fixture(arguments, command, root, arguments.pairs)
        results = {OURS: [], **{name: [] for name in settings}}
        for _ in range(arguments.rounds):
            # One after the other in every round, so that a machine that is busy for a while is so for all.
            results[OURS].append(ours(arguments, command, made, arguments.epochs))
            for name, flags in settings.items():
                results[name].append(trl(arguments, made, arguments.epochs, flags))
        report(arguments, results)


def report(arguments, results):
    (length,) = {(run["sequence_tokens"], run["answer_tokens"]) for runs in results.values() for run in runs if "sequence_tokens" in run}
    # A pair's tokens, prompt counted once: chosen and rejected are equally long.
    tokens = length[0] + length[1] // 2
    rows = {}
    for name, runs in results.items():
        done = runs[0]["pairs"] * arguments.epochs
        step = statistics.median(step for run in runs for step in run["steps"])
        rows[name] = {
            "whole": statistics.median(done / run["seconds"] for run in runs),
            "cpu": statistics.median(done / run["cpu_seconds"] for run in runs),
            "step": arguments.batch / step,
            "peak": max(run["peak_bytes"] for run in runs),
            "net": max(run["peak_bytes"] - run["runtime_bytes"] for run in runs),
        }
    print(f"{arguments.shape}: {runs[0]['pairs']} pairs of {tokens} tokens, {arguments.epochs} epochs, batch {arguments.batch}, "
          f"rank 16, {arguments.threads} threads; medians of {arguments.rounds} rounds, memory at most\n")
    print("| | pairs/s, whole run | tokens/s, whole run | pairs/s, median step | pairs per CPU second | peak MiB | without runtime MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['whole']:.3g} | {row['whole'] * tokens:.4g} | {row['step']:.3g} | {row['cpu']:.3g} "
              f"| {row['peak'] / 2**20:.0f} | {row['net'] / 2**20:.0f} |")
    here = rows.pop(OURS)
    print()
    for what, best in [("fastest", max(rows, key=lambda name: rows[name]["whole"])), ("smallest", min(rows, key=lambda name: rows[name]["peak"]))]:
        row = rows[best]
        print(f"against the {what} ({best}): {here['whole'] / row['whole']:.2f} times its pairs/s over the whole run, "
              f"{here['step'] / row['step']:.2f} times in a step, {here['cpu'] / row['cpu']:.2f} times per CPU second; "
              f"{here['peak'] / row['peak']:.2f} of its memory, {here['net'] / row['net']:.2f} without the runtimes")


if __name__ == "__main__":
    main()
