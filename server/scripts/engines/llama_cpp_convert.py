"""The checkpoint of examples/engines.rs as llama.cpp reads it: `text.gguf` and `vision.gguf`, in f32.

    python llama_cpp_convert.py CHECKPOINT LLAMA_CPP OUT

LLAMA_CPP is llama.cpp's source, as `pip download --no-deps --no-binary llama-cpp-python llama-cpp-python` brings it along
(`vendor/llama.cpp`); its own converter does the work. Two things are said to it that it looks up for checkpoints which it knows: the
architecture of the text model, and how text is cut before the merges of the tokenizer, which has no part in what is measured.
"""

import argparse
import json
import runpy
import sys
import tempfile
from pathlib import Path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(options.llama_cpp))
    sys.path.insert(1, str(options.llama_cpp / "gguf-py"))
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copy:
        for file in options.checkpoint.resolve().iterdir():
            (Path(copy) / file.name).symlink_to(file)
        config = json.loads((options.checkpoint / "config.json").read_text())
        # As SmolVLM's own config.json has it.
        config["text_config"]["architectures"] = ["VLlama3ForCausalLM"]
        (Path(copy) / "config.json").unlink()
        (Path(copy) / "config.json").write_text(json.dumps(config))
        for name, more in (("text.gguf", []), ("vision.gguf", ["--mmproj"])):
            sys.argv = ["convert_hf_to_gguf.py", copy, "--outtype", "f32", "--outfile", str(options.out / name), *more]
            runpy.run_path(str(options.llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
