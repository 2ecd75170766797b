"""Golden values for split images: what transformers makes of an Idefics3 with do_image_splitting on.

    python -m venv .venv && .venv/bin/pip install -r learner/scripts/split_golden/requirements.txt
    .venv/bin/python learner/scripts/split_golden/make.py

Run from the root of the repository. Takes the golden checkpoint of tests/golden/idefics3 with images resized to 256 pixels and
cut into tiles of 64, and writes the pictures and `expected.safetensors` to learner/tests/learner/golden_idefics3/split: prompt ids, pixel
values, and the logits of the last rows, for a 640 x 480 and a 1600 x 400 picture.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

MODEL = Path("tests/golden/idefics3/model")
OUT = Path("learner/tests/learner/golden_idefics3/split")
SIZES = [(640, 480), (1600, 400)]
LONGEST_EDGE = 256
# Rows at the end of the prompt; all of them see every tile.
ROWS = 24


def picture(width, height):
    """Shapes that differ from tile to tile, so that tiles in another order would show."""
    image = Image.new("RGB", (width, height), (40, 60, 90))
    draw = ImageDraw.Draw(image)
    for index in range(12):
        x, y = (index * 977) % width, (index * 613) % height
        edge = 30 + 23 * index
        colour = ((index * 71) % 256, (index * 137) % 256, (index * 29) % 256)
        (draw.ellipse if index % 2 else draw.rectangle)((x, y, x + edge, y + edge // 2), fill=colour)
    return image


@torch.no_grad()
def main():
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "model"
        shutil.copytree(MODEL, directory)
        path = directory / "preprocessor_config.json"
        settings = json.loads(path.read_text())
        settings.update(do_image_splitting=True, size={"longest_edge": LONGEST_EDGE})
        path.write_text(json.dumps(settings))
        processor = AutoProcessor.from_pretrained(directory)
        model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    template = json.loads((MODEL / "tokenizer_config.json").read_text())["chat_template"]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is left?"}]}]
    text = processor.apply_chat_template(messages, chat_template=template, add_generation_prompt=True)
    tensors = {}
    for index, size in enumerate(SIZES):
        image = picture(*size)
        image.save(OUT / f"picture_{index}.png", optimize=True)
        inputs = processor(text=text, images=[image], return_tensors="pt", add_special_tokens=False)
        # Half the bytes in the file; the model sees the same rounded values.
        inputs["pixel_values"] = inputs["pixel_values"].half().float()
        logits = model(**{key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask")}).logits
        tensors[f"input_ids_{index}"] = inputs["input_ids"][0].to(torch.int64)
        tensors[f"pixel_values_{index}"] = inputs["pixel_values"][0].to(torch.float16)
        tensors[f"logits_{index}"] = logits[0, -ROWS:]
        print(size, "tiles", tuple(inputs["pixel_values"].shape), "tokens", inputs["input_ids"].shape[1])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / "expected.safetensors")


if __name__ == "__main__":
    main()
