"""The checkpoint of examples/engines.rs as llama.cpp reads it: `text.gguf` and `vision.gguf`, in f32.

    python llama_cpp_convert.py CHECKPOINT LLAMA_CPP OUT

LLAMA_CPP is llama.cpp's source, as `pip download --no-deps --no-binary llama-cpp-python llama-cpp-python` brings it along
(`vendor/llama.cpp`); its own converter does the work. Three things are said to it that it finds in checkpoints which it knows: the
architecture of the text model, how text is cut before the merges of the tokenizer, and tokens; what is measured is the same.
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
        # Its tokenizer has a token for two ends of a line, which llama.cpp puts in front of a picture; and a text for every token, without
        # which llama.cpp sends nothing of one.
        tokenizer = json.loads((options.checkpoint / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        first = 1 + max([*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])])
        vocabulary["\u010a\u010a"] = first
        vocabulary.update({f"t{at}": at for at in range(first + 1, config["text_config"]["vocab_size"])})
        (Path(copy) / "tokenizer.json").unlink()
        (Path(copy) / "tokenizer.json").write_text(json.dumps(tokenizer))
        for name, more in (("text.gguf", []), ("vision.gguf", ["--mmproj"])):
            sys.argv = ["convert_hf_to_gguf.py", copy, "--outtype", "f32", "--outfile", str(options.out / name), *more]
            runpy.run_path(str(options.llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
