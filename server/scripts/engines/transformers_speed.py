"""What examples/engines.rs measures, with transformers on PyTorch: the same checkpoint, prompt, noise and greedy choice.

    python transformers_speed.py CHECKPOINT [--tokens 64] [--rounds 3] [--threads 2]

CHECKPOINT is the directory that `engines --keep` has made. Sequences are batched, all of one length, so nothing is padded; the
loop is by hand, without what `generate` adds to each step. Pictures have the tower's own size: they are normalised, not scaled.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy
import torch
from transformers import AutoTokenizer, Idefics3ForConditionalGeneration

END_OF_TURN = 2


def prompt(directory: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    parts = [{"type": "image"}, {"type": "text", "text": "describe the image"}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False)
    images = json.loads((directory / "processor_config.json").read_text())["image_seq_len"]
    border = "<fake_token_around_image>"
    text = text.replace("<image>", f"{border}<global-img>{'<image>' * images}{border}")
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def picture(edge: int, seed: int) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=numpy.uint8)


@torch.inference_mode()
def measure(model, ids, pictures, tokens, copies=1):
    """Seconds to the first token, tokens a second after it, seconds in all.

    With `copies`, the keys and values of the prompts are repeated so often once they were read (`Cache.batch_repeat_interleave`),
    and as many answers follow from each: the prompt is read once, and its picture is seen once. `generate` does not do that:
    asked for several answers, it repeats the prompt and its pictures before it reads them.
    """
    began = time.perf_counter()
    pixels = [torch.from_numpy(one).permute(2, 0, 1).float().div(255.0).sub(0.5).div(0.5) for one in pictures]
    pixels = torch.stack(pixels).unsqueeze(1)
    ids = torch.tensor([ids] * len(pictures))

    def choose(logits):
        logits = logits[:, -1]
        logits[:, END_OF_TURN] = -1000.0
        return logits.argmax(-1, keepdim=True)

    out = model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
    token = choose(out.logits)
    if copies > 1:
        out.past_key_values.batch_repeat_interleave(copies)
        token = token.repeat_interleave(copies, 0)
    first = time.perf_counter() - began
    for _ in range(tokens - 1):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = choose(out.logits)
    whole = time.perf_counter() - began
    return first, len(token) * (tokens - 1) / (whole - first), whole


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    model = Idefics3ForConditionalGeneration.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    print(f"transformers: loaded in {time.perf_counter() - began:.2f} s")
    edge = model.config.vision_config.image_size
    ids = prompt(options.checkpoint)
    print(f"{len(ids)} tokens of prompt")
    measure(model, ids, [picture(edge, 1_000_000)], options.tokens)
    seed = 0
    cases = (
        ("alone", 1, 1, 1),
        ("8 at once, 8 pictures", 8, 8, 1),
        ("8 at once about one picture, as a batch of 8 prompts", 8, 1, 1),
        ("8 at once about one picture, the prompt read once", 1, 1, 8),
    )
    for what, prompts, different, copies in cases:
        best = None
        for _ in range(options.rounds):
            seed += 8
            pictures = [picture(edge, seed + 1000 * (at % different)) for at in range(prompts)]
            measured = measure(model, ids, pictures, options.tokens, copies)
            best = min(best or measured, measured, key=lambda one: one[2])
        first, rate, whole = best
        print(f"{what}: first token {first:.3f} s, decode {rate:.1f} tokens/s, whole {whole:.3f} s", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
