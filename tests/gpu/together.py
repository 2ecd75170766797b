"""Answers alone equal answers in company: so many sequences inside the engine at once, texts and pictures mixed.

Greedy, because a sampled token would turn a difference of rounding into another answer by chance. Where the two likeliest
tokens are as near as the format can tell, either may be said, and what follows is no longer compared.
"""

from golden import END_OF_TURN, Golden
from report import NotRun, ensure
from server import tokens

SEQUENCES = (1, 8, 32)
QUESTIONS = 32
# Differences of a log-probability that are rounding.
NEAR = {"f32": 1e-3, "bf16": 0.1}


def cases(bench):
    golden = Golden(bench.golden)
    held = {}
    formats = ["f32"] if bench.is_dry else ["f32", "bf16"]
    for dtype in formats:
        for engine, paged in (("native", False), ("mistralrs", False), ("mistralrs", True)):
            name = f"{engine}{', paged' if paged else ''}, {dtype}"
            for sequences in SEQUENCES:
                def run(engine=engine, paged=paged, dtype=dtype, sequences=sequences, name=name):
                    figures = check(bench, golden, engine, paged, dtype, sequences)
                    held.setdefault(name, []).append(sequences)
                    return figures
                yield f"{name}, {sequences} at once", run
    yield "the largest that holds", lambda: {name: max(most) for name, most in held.items()}


def check(bench, golden, engine, paged, dtype, sequences):
    if engine == "mistralrs" and bench.is_dry and (paged or sequences > 1):
        raise NotRun("mistralrs has no pages on a CPU" if paged else "mistralrs answers wrongly there with a batch above 1")
    model = bench.golden_model(engine=engine, dtype=dtype, max_parallel=sequences, paged_attention=paged)
    model["unproven_parallel"] = not bench.is_dry
    with bench.serve(model) as server:
        server.load_adapter("golden", "adapter")
        questions = [question(golden, at) for at in range(QUESTIONS)]
        alone = [tokens(server.ask(body)) for body in questions]
        ties = 0
        for _ in range(3):
            company = server.ask_all(questions, QUESTIONS)
            for at, (one, other) in enumerate(zip(alone, map(tokens, company))):
                ties += same(at, one, other, NEAR[dtype])
    # An answer that may go on either way after a tie proves less; with many of them nothing is proven.
    ensure(ties <= QUESTIONS * 3 // 4, f"{ties} of {3 * QUESTIONS} answers were compared up to a tie only")
    return {"answers": 3 * QUESTIONS, "up to a tie only": ties}


def question(golden, at):
    """Pictures and texts of many lengths, of the base and of an adapter."""
    pair = golden.pairs[at % len(golden.pairs)]
    body = pair.question("reground@golden" if at % 3 == 1 else "reground@base")
    body.update(max_tokens=8 + at, top_logprobs=5, logit_bias={str(END_OF_TURN): -100})
    if at % 2:
        body["messages"] = [{"role": "user", "content": " ".join(["how many circles are left?"] * (1 + at // 4))}]
    return body


def same(at, alone, company, near):
    """Whether the two parted at a tie."""
    ensure(len(alone) == len(company), f"answer {at}: {len(company)} tokens in company, {len(alone)} alone")
    for place, ((one, logprob, others), (other, in_company, _)) in enumerate(zip(alone, company)):
        if one != other:
            second = dict(others).get(other)
            tie = second is not None and logprob - second <= near
            ensure(tie, f"answer {at}, token {place}: {other} in company, {one} alone ({logprob}, the other {second})")
            return True
        ensure(abs(logprob - in_company) <= near, f"answer {at}, token {place}: {in_company} in company, {logprob} alone")
    return False
