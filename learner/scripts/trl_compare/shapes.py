"""The shapes that are compared, as a checkpoint's settings. Needs no torch."""

import json


def vision(hidden, inner, layers, heads, image, patch):
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "image_size": image, "patch_size": patch,
    }


def text(hidden, inner, layers, heads, key_heads, vocabulary):
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "head_dim": hidden // heads, "vocab_size": vocabulary, "max_position_embeddings": 8192,
    }


# Sizes only, from the config.json of HuggingFaceTB/SmolVLM-256M-Instruct, SmolVLM-Instruct (2.2B), and Idefics2's 7B text
# model with the latter's tower. `pocket` is as it is.
SHAPES = {
    "pocket": {},
    "smolvlm-256m": {
        "scale_factor": 4, "text_config": text(576, 1536, 30, 9, 3, 49280), "vision_config": vision(768, 3072, 12, 12, 512, 16),
    },
    "smolvlm-2.2b": {
        "scale_factor": 3, "text_config": text(2048, 8192, 24, 32, 32, 49155), "vision_config": vision(1152, 4304, 27, 16, 384, 14),
    },
    "7b": {
        "scale_factor": 3, "text_config": text(4096, 14336, 32, 32, 8, 32003), "vision_config": vision(1152, 4304, 27, 16, 384, 14),
    },
}
# Tokens of a question and of an answer (end of turn included).
LENGTHS = {"pocket": (12, 24), "smolvlm-256m": (12, 100), "smolvlm-2.2b": (12, 100), "7b": (12, 100)}


def configure(name, directory):
    """Puts the sizes of `name` into the pocket's files. The side of an image in pixels."""
    config = json.loads((directory / "config.json").read_text())
    for part, values in SHAPES[name].items():
        if isinstance(values, dict):
            config[part].update(values)
        else:
            config[part] = values
    config["torch_dtype"] = "float32"
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    sizes = config["vision_config"]
    tokens = (sizes["image_size"] // sizes["patch_size"] // config["scale_factor"]) ** 2
    edge = {"longest_edge": sizes["image_size"]}
    edit(directory / "preprocessor_config.json", size=edge, max_image_size=edge)
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
    return sizes["image_size"]


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=1))
