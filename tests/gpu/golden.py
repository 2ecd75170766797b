"""The golden checkpoint: what PyTorch computed on it, and how to make the server say those tokens."""

import base64
import json
import math
from array import array

# In greedy answers to golden questions.
END_OF_TURN = 2


class Golden:
    def __init__(self, root):
        self.root = root
        self.expected = json.loads((root / "expected.json").read_text())
        self.names = vocabulary(json.loads((root / "model/tokenizer.json").read_text()))
        tensors = read_safetensors(root / "expected.safetensors")
        self.pairs = [Pair(root, at, values, tensors) for at, values in enumerate(self.expected["pairs"])]


class Pair:
    """A picture, a question, and the logits that each token of the annotated answer was drawn from."""

    def __init__(self, root, at, values, tensors):
        self.values = values
        self.image = data_url((root / values["image"]).read_bytes())
        # The end of the turn is no token of the text.
        self.chosen = values["chosen_ids"][:-1]
        first = len(values["prompt_ids"]) - 1
        self.logits = {}
        for which, name in [("base", "logits_chosen"), ("adapter", "adapter_logits_chosen")]:
            shape, numbers = tensors[f"{name}_{at}"]
            width = shape[-1]
            rows = [numbers[row * width:(row + 1) * width] for row in range(first, first + len(self.chosen))]
            self.logits[which] = rows

    def question(self, model, **more):
        """Greedy, 16 tokens with their twenty likeliest alternatives."""
        content = [{"type": "image_url", "image_url": {"url": self.image}}, {"type": "text", "text": self.values["question"]}]
        return {
            "model": model, "temperature": 0, "max_tokens": 16, "logprobs": True, "top_logprobs": 20,
            "messages": [{"role": "user", "content": content}], **more,
        }

    def distributions(self, which):
        return [log_softmax(row) for row in self.logits[which]]

    def forcing(self, which, margin):
        """Additions to a greedy question that make it say the annotated answer as far as can be done, and how many tokens
        that is; the wanted token wins by at least `margin`. As in tests/src/golden.rs, which explains it."""
        for steps in range(len(self.chosen), 0, -1):
            bias = self.biases(which, steps, margin)
            if bias and max(bias.values()) - min(bias.values()) <= 50.0:
                highest = max(bias.values())
                logit_bias = {str(token): value - highest + 100.0 for token, value in bias.items()}
                return {"logit_bias": logit_bias, "frequency_penalty": 2, "presence_penalty": 2, "max_tokens": steps}, steps
        raise ValueError("not one token can be forced")

    def biases(self, which, steps, margin):
        wanted = self.chosen[:steps]
        constraints = []
        for step, token in enumerate(wanted):
            def score(other):
                said = wanted[:step].count(other)
                return self.logits[which][step][other] - (2.0 + 2.0 * said if said else 0.0)
            constraints += [(token, other, score(token) - score(other) - margin) for other in wanted if other != token]
        bias = dict.fromkeys(wanted, 0.0)
        for _ in range(len(bias) + 1):
            changed = False
            for token, other, most in constraints:
                if bias[token] + most < bias[other] - 1e-9:
                    bias[other], changed = bias[token] + most, True
            if not changed:
                return bias
        return None


def data_url(png):
    return "data:image/png;base64," + base64.b64encode(png).decode()


def log_softmax(row):
    highest = max(row)
    total = math.log(sum(math.exp(value - highest) for value in row))
    return [value - highest - total for value in row]


def read_safetensors(path):
    """f32 tensors by name, as (shape, values)."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:8 + length]), memoryview(content)[8 + length:]
    tensors = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            begin, end = entry["data_offsets"]
            tensors[name] = entry["shape"], array("f", bytes(data[begin:end]))
    return tensors


def vocabulary(tokenizer):
    """Each token's bytes. A byte-level vocabulary writes every byte as a printable character (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
    names = {token: bytes(byte_of[c] for c in text if c in byte_of) for text, token in tokenizer["model"]["vocab"].items()}
    return names | {token["id"]: token["content"].encode() for token in tokenizer["added_tokens"]}
