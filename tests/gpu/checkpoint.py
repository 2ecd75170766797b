"""Random checkpoints of a real model's shape, with adapters and preference pairs, written without torch."""

import base64
import json
import math
import random
import shutil
import struct
import zlib
from array import array

from shapes import LENGTHS, configure

FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
RANK = 16


def write(bench, shape, pairs=0):
    """A directory with `model`, the adapters `new` (as PEFT starts one) and `moved` (no B is zero), and `pairs.jsonl`."""
    directory = bench.work / f"{shape}-{pairs}"
    if directory.exists():
        return directory
    model = directory / "model"
    model.mkdir(parents=True)
    for name in FILES:
        shutil.copy(bench.root / "learner/assets/pocket" / name, model / name)
    edge = configure(shape, model)
    config = json.loads((model / "config.json").read_text())
    save(model / "model.safetensors", "BF16", tensors(config))
    for name, is_new in (("new", True), ("moved", False)):
        adapter(directory / name, config["text_config"], is_new)
    preference(directory, shape, edge, pairs)
    return directory


def tensors(config):
    """Names of the hub, with their dimensions and the standard deviation of their values; None for ones."""
    text, sight, scale = config["text_config"], config["vision_config"], config["scale_factor"]
    hidden, inner, vocabulary = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    width, patch = sight["hidden_size"], sight["patch_size"]
    side = sight["image_size"] // patch
    yield "model.text_model.embed_tokens.weight", (vocabulary, hidden), 0.04
    yield "lm_head.weight", (vocabulary, hidden), 0.04
    yield "model.text_model.norm.weight", (hidden,), None
    yield "model.connector.modality_projection.proj.weight", (hidden, width * scale * scale), 0.04
    for layer in range(text["num_hidden_layers"]):
        name = f"model.text_model.layers.{layer}"
        for tail, (outputs, inputs) in linear(text):
            yield f"{name}.{tail}.weight", (outputs, inputs), 1.0 / math.sqrt(inputs)
        yield f"{name}.input_layernorm.weight", (hidden,), None
        yield f"{name}.post_attention_layernorm.weight", (hidden,), None
    tower = "model.vision_model"
    yield f"{tower}.embeddings.patch_embedding.weight", (width, 3, patch, patch), 0.04
    yield f"{tower}.embeddings.patch_embedding.bias", (width,), 0.04
    yield f"{tower}.embeddings.position_embedding.weight", (side * side, width), 0.04
    yield f"{tower}.post_layernorm.weight", (width,), None
    yield f"{tower}.post_layernorm.bias", (width,), 0.04
    inner = sight["intermediate_size"]
    for layer in range(sight["num_hidden_layers"]):
        name = f"{tower}.encoder.layers.{layer}"
        for tail, dims in (
            *((f"self_attn.{which}_proj", (width, width)) for which in ("q", "k", "v", "out")),
            ("mlp.fc1", (inner, width)), ("mlp.fc2", (width, inner)),
        ):
            yield f"{name}.{tail}.weight", dims, 1.0 / math.sqrt(dims[1])
            yield f"{name}.{tail}.bias", dims[:1], 0.04
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{name}.{norm}.weight", (width,), None
            yield f"{name}.{norm}.bias", (width,), 0.04


def linear(text):
    """The linear layers of a block, `(outputs, inputs)` each."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    queries, keys = (text[heads] * text["head_dim"] for heads in ("num_attention_heads", "num_key_value_heads"))
    return zip(LINEAR, ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries), (inner, hidden), (inner, hidden), (hidden, inner)))


def adapter(directory, text, is_new):
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "", "r": RANK, "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "target_modules": r".*text_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    }))
    entries = []
    for layer in range(text["num_hidden_layers"]):
        for tail, (outputs, inputs) in linear(text):
            name = f"base_model.model.model.text_model.layers.{layer}.{tail}"
            entries.append((f"{name}.lora_A.weight", (RANK, inputs), 1.0 / math.sqrt(inputs)))
            entries.append((f"{name}.lora_B.weight", (outputs, RANK), 0.0 if is_new else 0.01))
    save(directory / "adapter_model.safetensors", "F32", entries)


def save(path, dtype, entries):
    """A safetensors file. Values come from one block of random numbers, read from another place for each tensor: a billion
    numbers of their own would take Python an hour."""
    entries = list(entries)
    size = 2 if dtype == "BF16" else 4
    header, end = {}, 0
    for name, dims, _ in entries:
        begin, end = end, end + math.prod(dims) * size
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    generator = random.Random(0)
    blocks = {}
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _, dims, deviation in entries:
            if deviation not in blocks:
                blocks[deviation] = block(dtype, deviation, generator)
            left, values = math.prod(dims) * size, blocks[deviation]
            start = generator.randrange(len(values) // size) * size
            while left:
                piece = values[start:start + left]
                out.write(piece)
                left, start = left - len(piece), 0


def block(dtype, deviation, generator, count=1 << 18):
    values = array("f", (1.0 if deviation is None else generator.gauss(0.0, 1.0) * deviation for _ in range(count))).tobytes()
    if dtype == "F32":
        return values
    # bf16 is the upper half of f32.
    halves = bytearray(2 * count)
    halves[0::2], halves[1::2] = values[2::4], values[3::4]
    return bytes(halves)


def preference(directory, shape, edge, pairs):
    """Pairs of random words that are one token each, with a picture of noise of their own."""
    vocabulary = json.loads((directory / "model/tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(word[1:] for word in vocabulary if word.startswith("Ġ") and word[1:].isalpha())
    generator = random.Random(0)
    asked, answered = LENGTHS[shape]

    def answer():
        return [{"role": "assistant", "content": " ".join(generator.choices(words, k=answered - 1))}]
    with open(directory / "pairs.jsonl", "w") as out:
        for _ in range(pairs):
            url = "data:image/png;base64," + base64.b64encode(png(generator, edge)).decode()
            question = " ".join(generator.choices(words, k=asked))
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
            out.write(json.dumps({
                "input": {"messages": [{"role": "user", "content": parts}]},
                "preferred_output": answer(), "non_preferred_output": answer(),
            }) + "\n")


def png(generator, edge, across=8):
    """A picture of `across` × `across` random squares, `edge` pixels wide."""
    rows = bytearray()
    colours = [[generator.randbytes(3) for _ in range(across)] for _ in range(across)]
    for y in range(edge):
        rows += b"\0" + b"".join(colours[y * across // edge][x * across // edge] for x in range(edge))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b"")
