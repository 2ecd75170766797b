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
from shapes import LENGTHS, configure
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

LINEAR = r".*text_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

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
    edge = configure(arguments.shape, directory)
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
