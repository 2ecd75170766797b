"""The whole loop on the built-in model: asked, corrected, trained, gated, switched."""

import json
import subprocess

from report import ensure


def cases(bench):
    yield "reground demo", lambda: check(bench)


def check(bench):
    # With fewer questions than it asks by itself the gate, rightly, lets nothing through.
    size = ["--images", "40"] if bench.is_dry else []
    command = [str(bench.program), "demo", "--json", "--device", bench.device, *size]
    run = subprocess.run(command, cwd=bench.work, env=bench.environment, capture_output=True, text=True)
    ensure(run.returncode == 0, f"reground demo: {run.stderr[-2000:]}")
    outcome = json.loads(run.stdout)
    ensure(outcome["adapter"], "no adapter was made")
    return {"adapter": outcome["adapter"]}
