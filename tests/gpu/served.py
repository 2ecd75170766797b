"""Served tokens and log-probabilities against PyTorch's, on the golden checkpoint, for the base and for an adapter."""

from golden import Golden
from report import NotRun, ensure
from server import tokens

# Largest difference of a log-probability. bf16: 2 % of it, and of 1 where it is near 0.
TOLERANCE = {"f32": lambda _: 1e-4, "bf16": lambda wanted: 0.02 * max(1.0, abs(wanted))}
# The forced token wins by more than the format is off.
MARGIN = {"f32": 0.05, "bf16": 0.3}


def cases(bench):
    golden = Golden(bench.golden)
    for engine in ("native", "mistralrs"):
        for dtype in ("f32", "bf16"):
            yield f"{engine}, {dtype}", lambda engine=engine, dtype=dtype: check(bench, golden, engine, dtype)


def check(bench, golden, engine, dtype):
    if bench.is_dry and dtype != "f32":
        raise NotRun("a CPU computes in f32 only")
    worst, compared = 0.0, 0
    with bench.serve(bench.golden_model(engine=engine, dtype=dtype)) as server:
        server.load_adapter("golden", "adapter")
        for at, pair in enumerate(golden.pairs):
            for which, model in (("base", "reground@base"), ("adapter", "reground@golden")):
                what = f"pair {at}, {which}"
                if dtype == "f32":
                    said = [token for token, _, _ in tokens(server.ask(pair.question(model)))]
                    wanted = [golden.names[token] for token in pair.values[f"{which}_greedy_ids"]]
                    ensure(said == wanted, f"{what}: {said} instead of {wanted}")
                forcing, steps = pair.forcing(which, MARGIN[dtype])
                answer = tokens(server.ask(pair.question(model, **forcing)))
                ensure(len(answer) == steps, f"{what}: {len(answer)} tokens instead of {steps}")
                for (token, logprob, others), wanted, row in zip(answer, pair.chosen, pair.distributions(which)):
                    ensure(token == golden.names[wanted], f"{what}: {token} instead of {golden.names[wanted]}")
                    # Likeliest first on both sides; which token it is may differ where two are as likely.
                    likeliest = sorted(row, reverse=True)
                    for got, expected in [(logprob, row[wanted]), *zip((other for _, other in others), likeliest)]:
                        off = abs(got - expected)
                        ensure(off <= TOLERANCE[dtype](expected), f"{what}: log-probability {got} instead of {expected}")
                        worst, compared = max(worst, off), compared + 1
    return {"log-probabilities": compared, "largest difference": worst}
