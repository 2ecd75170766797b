"""Adapters are interchangeable with PEFT: written here and loaded there, saved there and loaded here.

    python -m venv .venv && .venv/bin/pip install -r learner/scripts/peft_parity/requirements.txt
    .venv/bin/python learner/scripts/peft_parity/check.py

Run from the root of the repository. The Rust half is built with cargo; `--binary` names one that is built already.
Both directions compare the logits of a prompt with an image, every row, at 1e-4 in f32.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

GOLDEN = Path("tests/golden/idefics3")
TOLERANCE = 1e-4
LINEAR = r".*text_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def base():
    return AutoModelForImageTextToText.from_pretrained(GOLDEN / "model", dtype=torch.float32).eval()


@torch.no_grad()
def logits(model, case):
    inputs = {"input_ids": case["input_ids"][None], "pixel_values": case["pixel_values"][None]}
    return model(**inputs).logits[0]


def written_here(rust, directory):
    """An adapter with rsLoRA, a rank pattern and an alpha pattern, written by this project, loaded by PEFT."""
    rust("write", GOLDEN / "model", GOLDEN / "image_1.png", directory)
    case = load_file(directory / "case.safetensors")
    plain = logits(base(), case)
    with warnings.catch_warnings():
        # PEFT warns about tensors that it misses or does not expect: here that is a failure.
        warnings.simplefilter("error", UserWarning)
        model = PeftModel.from_pretrained(base(), directory / "adapter").eval()
    with_adapter = logits(model, case)
    difference = (with_adapter - case["logits"]).abs().max().item()
    print(f"largest difference of logits, an adapter written here and loaded by PEFT: {difference:.2e}")
    assert (with_adapter - plain).abs().max() > 0.1, "the adapter changes nothing"
    assert difference < TOLERANCE


def saved_by_peft(rust, directory, config):
    """An adapter that PEFT made and saved, loaded here."""
    torch.manual_seed(11)
    model = get_peft_model(base(), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.uniform_(parameter, -0.2, 0.2)
    model.save_pretrained(directory / "adapter")
    case = load_file(directory.parent / "here" / "case.safetensors")
    case["logits"] = logits(model, case)
    save_file({name: tensor.contiguous() for name, tensor in case.items()}, directory / "case.safetensors")
    rust("check", GOLDEN / "model", directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="a built peft_parity example")
    arguments = parser.parse_args()
    command = [arguments.binary] if arguments.binary else [
        "cargo", "run", "--quiet", "--release", "-p", "reground-learner", "--example", "peft_parity", "--",
    ]

    def rust(*parameters):
        subprocess.run([*command, *map(str, parameters)], check=True)

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in ("here", "regex", "list"):
            (root / name).mkdir()
        written_here(rust, root / "here")
        saved_by_peft(rust, root / "regex", LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR))
        # Whole paths, as this project writes them, beside rsLoRA and patterns.
        paths = [f"model.text_model.layers.{layer}.{name}" for layer in range(3) for name in ("self_attn.q_proj", "mlp.down_proj")]
        saved_by_peft(rust, root / "list", LoraConfig(
            r=4, lora_alpha=8, target_modules=paths, use_rslora=True,
            rank_pattern={r"layers\.1\..*": 3}, alpha_pattern={"down_proj": 5},
        ))
    print("adapters are interchangeable")


if __name__ == "__main__":
    sys.exit(main())
