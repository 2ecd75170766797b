"""`reground train` against PyTorch's twenty steps on the golden checkpoint."""

import json

from golden import read_safetensors
from report import NotRun, ensure

RUN = """\
[model]
base = "{golden}/model"
adapter = "{golden}/train_start"
dtype = "{dtype}"
[loss]
preset = "paper"
[optimizer]
learning_rate = 2e-3
max_grad_norm = 0.0
[schedule]
decay = "constant"
warmup = 0.0
[train]
batch = 4
micro_batch = 3
epochs = 20.0
[data]
held_out = 0.0
blobs = "blobs"
[guard]
chosen_drop = 0.0
loss_ratio = 0.0
"""
# By the name here and PyTorch's: largest difference in f32.
CLOSE = {
    "loss": ("loss", 1e-3), "rewards/chosen": ("rewards_chosen", 1e-3), "rewards/rejected": ("rewards_rejected", 1e-3),
    "rewards/margins": ("rewards_margins", 2e-3), "logps/chosen": ("logps_chosen", 1e-2),
    "logps/rejected": ("logps_rejected", 1e-2), "grad_norm": ("grad_norm", 2e-3),
}


def cases(bench):
    for dtype in ("f32", "bf16"):
        yield f"twenty steps, {dtype}", lambda dtype=dtype: check(bench, dtype)


def check(bench, dtype):
    if bench.is_dry and dtype != "f32":
        raise NotRun("a CPU computes in f32 only")
    expected = json.loads((bench.golden / "expected.json").read_text())
    data = bench.work / "golden.jsonl"
    data.write_text("".join(json.dumps(row(pair)) + "\n" for pair in expected["pairs"]))
    directory = bench.work / f"golden-{dtype}"
    events = bench.train(directory, RUN.format(golden=bench.golden, dtype=dtype), data, bench.golden)
    steps = [event for event in events if event["event"] == "step"]
    wanted = expected["train"]["steps"]
    ensure(len(steps) == len(wanted), f"{len(steps)} steps instead of {len(wanted)}")
    figures = {"steps": len(steps), "last loss": steps[-1]["loss"], "PyTorch's": wanted[-1]["loss"]}
    if dtype == "f32":
        for step, pytorch in zip(steps, wanted):
            for ours, (theirs, tolerance) in CLOSE.items():
                off = abs(step[ours] - pytorch[theirs])
                ensure(off <= tolerance, f"step {step['step']}: {ours} is {step[ours]}, PyTorch has {pytorch[theirs]}")
        figures["largest difference of an adapter's value"] = end(bench.golden / "train_end", directory / "adapter")
        return figures
    worst = 0.0
    for step, pytorch in zip(steps, wanted):
        for ours, theirs in (("logps/chosen", "logps_chosen"), ("logps/rejected", "logps_rejected")):
            worst = max(worst, abs(step[ours] / pytorch[theirs] - 1.0))
    ensure(worst <= 0.02, f"a log-probability is off by {worst:.2%}")
    return {**figures, "largest relative difference of a log-probability": worst}


def end(theirs, ours):
    """How far two adapters are apart."""
    pytorch, here = (read_safetensors(path / "adapter_model.safetensors") for path in (theirs, ours))
    ensure(pytorch.keys() == here.keys(), f"{sorted(here)} instead of {sorted(pytorch)}")
    worst = max(abs(a - b) for name in here for a, b in zip(here[name][1], pytorch[name][1], strict=True))
    ensure(worst <= 2e-3, f"the adapter is off by {worst}")
    return worst


def row(pair):
    content = [{"type": "image_url", "image_url": {"url": pair["image"]}}, {"type": "text", "text": pair["question"]}]

    def answer(key):
        return [{"role": "assistant", "content": pair[key].strip()}]
    return {
        "input": {"messages": [{"role": "user", "content": content}]},
        "preferred_output": answer("chosen"), "non_preferred_output": answer("rejected"),
    }
