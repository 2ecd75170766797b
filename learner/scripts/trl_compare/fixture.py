"""Model, adapter and pairs that both sides train on, random but for their shape.

    fixture.py SHAPE FILES OUT --pairs N

FILES is what `trl_compare files` wrote: the pocket's tokenizer, template and preprocessor, which also serve a larger shape.
"""

import argparse
import base64
import json
import random
import shutil
from io import BytesIO
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

LINEAR = r".*text_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

# HuggingFaceTB/SmolVLM-256M-Instruct's config.json, sizes only.
SMOLVLM_256M = {
    "scale_factor": 4,
    "text_config": {
        "head_dim": 64, "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192,
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "vocab_size": 49280,
    },
    "vision_config": {
        "hidden_size": 768, "image_size": 512, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_hidden_layers": 12, "patch_size": 16,
    },
}
# Tokens of a question and of an answer (end of turn included).
LENGTHS = {"pocket": (12, 24), "smolvlm-256m": (12, 100)}


def shape(name, directory):
    """Puts the sizes of `name` into the pocket's files."""
    config = json.loads((directory / "config.json").read_text())
    if name == "smolvlm-256m":
        config["scale_factor"] = SMOLVLM_256M["scale_factor"]
        for part in ("text_config", "vision_config"):
            config[part].update(SMOLVLM_256M[part])
    config["torch_dtype"] = "float32"
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    vision = config["vision_config"]
    tokens = (vision["image_size"] // vision["patch_size"] // config["scale_factor"]) ** 2
    edit(directory / "preprocessor_config.json", size={"longest_edge": vision["image_size"]},
         max_image_size={"longest_edge": vision["image_size"]})
    edit(directory / "processor_config.json", image_seq_len=tokens)
    # TRL scores everything that the template puts after the prompt; this project ends an answer with its end of turn. Without
    # the line break after it both score the same tokens.
    path = directory / "tokenizer_config.json"
    template = json.loads(path.read_text())["chat_template"]
    assert template.count("<end_of_utterance>\n") == 1
    template = template.replace("<end_of_utterance>\n", "<end_of_utterance>")
    edit(path, chat_template=template)
    # transformers' processors read it from a file of its own.
    (directory / "chat_template.jinja").write_text(template)
    return vision["image_size"]


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=LENGTHS)
    parser.add_argument("files", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    directory = arguments.out / "model"
    shutil.copytree(arguments.files, directory)
    edge = shape(arguments.shape, directory)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32)
    model.save_pretrained(directory)
    # save_pretrained writes the configuration anew; the files that came here are the shape's.
    for name, content in files.items():
        (directory / name).write_bytes(content)
    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEAR)
    adapter = get_peft_model(model, adapter)
    adapter.save_pretrained(arguments.out / "adapter")

    tokenizer = AutoProcessor.from_pretrained(directory).tokenizer
    words = sorted(word[1:] for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha())
    generator = random.Random(0)
    asked, answered = LENGTHS[arguments.shape]

    def text(tokens):
        found = " ".join(generator.choices(words, k=tokens))
        assert len(tokenizer(" " + found, add_special_tokens=False)["input_ids"]) == tokens, found
        return found

    with open(arguments.out / "pairs.jsonl", "w") as out:
        for _ in range(arguments.pairs):
            # A picture of its own for every pair: nothing is shared but what a pair shares with itself.
            noise = Image.frombytes("RGB", (8, 8), generator.randbytes(8 * 8 * 3)).resize((edge, edge), Image.BICUBIC)
            png = BytesIO()
            noise.save(png, "PNG")
            url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text(asked)}]
            chosen, rejected = text(answered - 1), text(answered - 1)
            out.write(json.dumps({
                "input": {"messages": [{"role": "user", "content": parts}]},
                "preferred_output": [{"role": "assistant", "content": chosen}],
                "non_preferred_output": [{"role": "assistant", "content": rejected}],
            }) + "\n")


if __name__ == "__main__":
    main()
