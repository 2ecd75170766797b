"""Adapters are loaded and dropped under traffic: nobody notices, and memory comes back."""

import threading
import time

import checkpoint
from golden import Golden
from memory import resident, settled
from report import ensure

CLIENTS = 4
# Growth from the tenth swap to the last that an allocator may keep.
SLACK = 64 << 20


def cases(bench):
    for engine in ("native", "mistralrs"):
        yield f"{engine}", lambda engine=engine: check(bench, engine)


def check(bench, engine):
    swaps, shown = (12, (0, 4, 12)) if bench.is_dry else (50, (0, 10, 50))
    if bench.is_dry:
        model, adapter = bench.golden_model(engine=engine), "adapter"
    else:
        directory = checkpoint.write(bench, "smolvlm-256m")
        model, adapter = {"source": str(directory / "model"), "adapter_root": str(directory), "engine": engine}, "moved"
    with bench.serve(model) as server:
        traffic = Traffic(server, Golden(bench.golden).pairs[0])
        sizes = {}
        with traffic:
            # Allocators and thread pools reach their size with the first ones.
            for at in range(-3, swaps + 1):
                if at in shown:
                    sizes[at] = {"host": settled(lambda: resident(server.process.pid))}
                    if bench.gpu:
                        sizes[at]["GPU"] = settled(bench.gpu.used)
                if at == swaps:
                    break
                name = f"swap-{at + 3}"
                server.load_adapter(name, adapter)
                server.ask(traffic.question(f"reground@{name}"))
                server.unload_adapter(name)
    ensure(not traffic.failures, f"{len(traffic.failures)} requests failed, the first with {traffic.failures[:1]}")
    ensure(len(traffic.seconds) >= swaps, f"only {len(traffic.seconds)} requests were asked meanwhile")
    traffic.seconds.sort()
    figures = {"swaps": swaps, "requests": len(traffic.seconds), "failed": 0}
    figures["p99 s"] = traffic.seconds[int(0.99 * (len(traffic.seconds) - 1))]
    for where in sizes[0]:
        figures[f"{where} MiB at {', '.join(map(str, shown))}"] = "/".join(str(sizes[at][where] >> 20) for at in shown)
        growth = sizes[shown[2]][where] - sizes[shown[1]][where]
        limit = max(SLACK, sizes[shown[1]][where] // 50)
        ensure(growth <= limit, f"{where} memory grew by {growth >> 20} MiB: {figures}")
    return figures


class Traffic:
    """Clients that ask the base without a pause for as long as the `with` lasts."""

    def __init__(self, server, pair):
        self.server, self.pair = server, pair
        self.seconds, self.failures, self.done = [], [], threading.Event()
        self.threads = [threading.Thread(target=self.keep_asking, daemon=True) for _ in range(CLIENTS)]

    def question(self, model):
        return self.pair.question(model, max_tokens=24, logprobs=False, top_logprobs=None, logit_bias={"2": -100})

    def keep_asking(self):
        while not self.done.is_set():
            began = time.monotonic()
            try:
                self.server.ask(self.question("reground@base"))
                self.seconds.append(time.monotonic() - began)
            except Exception as failure:  # Whatever a client sees is what is counted.
                self.failures.append(repr(failure))

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.done.set()
        for thread in self.threads:
            thread.join()
