"""TRL's side: DPOTrainer with a new LoRA on a vision model. Prints one JSON object.

    trl_side.py FIXTURE --epochs 2 --batch 16 --micro 16 [--checkpointing] [--bf16] --threads 2 [--cuda]

`precompute_ref_log_probs`, TRL's way to compute the reference once, is refused by TRL for data with images.
"""

import argparse
import base64
import json
import resource
import sys
import time
from io import BytesIO
from pathlib import Path

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from datasets import List
from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import DPOConfig, DPOTrainer

LINEAR = r".*text_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def memory(key):
    """Bytes of /proc/self/status: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock(TrainerCallback):
    """Seconds and loss of each optimiser step."""

    def __init__(self):
        self.steps, self.losses = [], []

    def on_step_begin(self, *_, **__):
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.steps.append(time.perf_counter() - self.began)

    def on_log(self, *_, logs=None, **__):
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def dataset(path):
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        image, text = row["input"]["messages"][0]["content"]
        png = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        rows.append({
            "images": [Image.open(BytesIO(png))],
            "prompt": [{"role": "user", "content": text["text"]}],
            "chosen": row["preferred_output"],
            "rejected": row["non_preferred_output"],
        })
    return Dataset.from_list(rows).cast_column("images", List(ImageFeature()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixture", type=Path)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int, default=16, help="pairs in one forward pass; the batch is accumulated")
    parser.add_argument("--checkpointing", action="store_true", help="TRL's default: compute activations again")
    parser.add_argument("--bf16", action="store_true", help="TRL's default: bfloat16 where autocast uses it")
    parser.add_argument("--bf16-weights", action="store_true", help="hold the frozen base in bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cuda", action="store_true", help="on the first GPU that is visible, instead of the CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runtime = memory("VmRSS")

    directory = arguments.fixture / "model"
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.bfloat16 if arguments.bf16_weights else torch.float32)
    config = DPOConfig(
        output_dir=str(arguments.fixture / "trl"), use_cpu=not arguments.cuda, seed=0, report_to="none", save_strategy="no",
        logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False, max_length=None,
        per_device_train_batch_size=arguments.micro, gradient_accumulation_steps=arguments.batch // arguments.micro,
        num_train_epochs=arguments.epochs, learning_rate=1e-3, lr_scheduler_type="constant", warmup_steps=0,
        max_grad_norm=1.0, weight_decay=0.0, beta=0.1, loss_type="sigmoid",
        gradient_checkpointing=arguments.checkpointing, bf16=arguments.bf16,
    )
    clock = Clock()
    trainer = DPOTrainer(
        model=model, args=config, processing_class=AutoProcessor.from_pretrained(directory),
        train_dataset=dataset(arguments.fixture / "pairs.jsonl"),
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEAR), callbacks=[clock],
    )
    loaded = set_peft_model_state_dict(trainer.model, load_peft_weights(str(arguments.fixture / "adapter"), device="cpu"))
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    before = trainer.data_collator([dict(trainer.train_dataset[0])])
    length = int(before["attention_mask"][0].sum()), int(before["completion_mask"].sum())
    began, used = time.perf_counter(), cpu()
    trainer.train()
    json.dump({
        "seconds": time.perf_counter() - began, "cpu_seconds": cpu() - used, "steps": clock.steps, "losses": clock.losses,
        "pairs": len(trainer.train_dataset), "runtime_bytes": runtime, "peak_bytes": memory("VmHWM"),
        "sequence_tokens": length[0], "answer_tokens": length[1],
    }, sys.stdout)


if __name__ == "__main__":
    main()
