#!/usr/bin/env python3
"""Writes a few small, sound inputs of every kind into corpus/, for the search to start from."""

import base64
import json
import struct
import zlib
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"


def write(target: str, name: str, data: bytes) -> None:
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


def chat_bodies() -> None:
    def body(name: str, *messages: dict, **parameters: object) -> None:
        request = {"model": "reground", "messages": messages, **parameters}
        write("chat_body", name, json.dumps(request, ensure_ascii=False).encode())

    user = {"role": "user", "content": 'Say "hello" in 日本語 😀\u0007.'}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}}
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": -1e3}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": schema, "strict": True}}
    body("plain", user)
    body("sampling", user, temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, frequency_penalty=-0.5, presence_penalty=2,
         seed=-1, max_completion_tokens=16, max_tokens=16, n=2, stop=["\n", "END"], logit_bias={"17": -100, "4": 5.5})
    body("stream", user, stream=True, stream_options={"include_usage": True, "include_obfuscation": False},
         logprobs=True, top_logprobs=20, user="somebody", metadata={"colour": "green"}, stop="x")
    body("image", {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
         {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}, image]})
    body("tools", user, {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
         {"role": "tool", "tool_call_id": "call_1", "content": "2"}, tools=[tool], tool_choice="auto",
         parallel_tool_calls=True)
    body("forced", user, tools=[tool], tool_choice={"type": "function", "function": {"name": "add"}})
    body("object", user, response_format={"type": "json_object"})
    body("schema", user, response_format={"type": "json_schema", "json_schema": {
        "name": "sum", "description": "A sum", "strict": True, "schema": schema}})
    body("without_effect", user, modalities=["text"], service_tier="auto", reasoning_effort="none", verbosity="medium",
         store=False, safety_identifier="x", functions=None, audio=None, prediction=None)


def png(width: int, height: int, colour: int, depth: int, row: bytes, chunks: bytes = b"", interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    data = zlib.compress((b"\0" + row) * height, 9)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + png_chunk(b"IDAT", data)
            + png_chunk(b"IEND", b""))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg(components: int, progressive: bool = False, before: bytes = b"") -> bytes:
    """One grey block of 8 x 8 pixels, every difference zero."""
    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    def scan(members: range, low: int, high: int, bits: int) -> bytes:
        selected = b"".join(bytes([member, 0]) for member in members)
        header = bytes([len(members)]) + selected + bytes([low, high, 0])
        padded = "0" * bits + "1" * (-bits % 8)
        return segment(0xDA, header) + int(padded, 2).to_bytes(len(padded) // 8, "big")

    every = range(1, components + 1)
    frame = struct.pack(">BHHB", 8, 8, 8, components) + b"".join(bytes([member, 0x11, 0]) for member in every)
    # DC: category 0 is the code 0. AC: the end of the block is the code 0.
    tables = b"".join(segment(0xC4, bytes([kind, 1]) + bytes(15) + b"\0") for kind in (0x00, 0x10))
    head = b"\xff\xd8" + before + segment(0xDB, b"\0" + bytes([8] * 64))
    if progressive:
        scans = scan(every, 0, 0, components) + b"".join(scan(range(c, c + 1), 1, 63, 1) for c in every)
    else:
        scans = scan(every, 0, 63, 2 * components)
    return head + segment(0xC2 if progressive else 0xC0, frame) + tables + scans + b"\xff\xd9"


def gif(width: int, height: int, frames: int) -> bytes:
    """Every second pixel is preceded by a clear code, so that codes stay three bits long."""
    bits = "".join(f"{code:03b}"[::-1] for _ in range(width * height // 2) for code in (4, 1, 2)) + "101"
    bits = (bits + "0" * (-len(bits) % 8))[::-1]
    coded = int(bits, 2).to_bytes(len(bits) // 8, "little")
    image = (b"\x21\xf9\x04\x05\x0a\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
             + b"\x02" + bytes([len(coded)]) + coded + b"\0")
    palette = bytes.fromhex("ffffff 00ff00 0000ff 000000")
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x91, 0, 0) + palette + image * frames + b";"


def bmp(width: int, height: int, depth: int, compression: int, extra: bytes, pixels: bytes) -> bytes:
    offset = 54 + len(extra)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + extra + pixels


# The smallest WebP files: lossy, lossless, with alpha, animated.
WEBP = {
    "lossy": "UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA",
    "lossless": "UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==",
    "alpha": "UklGRkoAAABXRUJQVlA4WAoAAAAQAAAAAAAAAAAAQUxQSAwAAAARBxAR/Q9ERP8DAABWUDggGAAAABQBAJ0BKgEAAQAAAP4AAA3AAP7mtQAAAA==",
    "animated": "UklGRlIAAABXRUJQVlA4WAoAAAASAAAAAAAAAAAAQU5JTQYAAAD/////AABBTk1GJgAAAAAAAAAAAAAAAAAAAGQAAABWUDhMDQAAAC8AAAAQBxAREYiI/gcA",
}


def image_parts() -> None:
    def part(kind: int, name: str, data: bytes) -> None:
        write("image_part", name, bytes([kind]) + data)

    palette = png_chunk(b"PLTE", bytes(range(12))) + png_chunk(b"tRNS", b"\0\x80")
    part(0, "png_rgb", png(4, 4, 2, 8, bytes(range(12))))
    part(0, "png_rgba_16", png(2, 2, 6, 16, bytes(range(16))))
    part(0, "png_palette", png(4, 4, 3, 2, b"\x1b", palette))
    part(0, "png_grey_1", png(8, 3, 0, 1, b"\xaa"))
    part(0, "png_interlaced", png(1, 1, 4, 8, b"\x40\x80", interlace=1))
    # EXIF: little endian, one entry, orientation 6.
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x02"
    part(1, "jpeg_grey", jpeg(1))
    part(1, "jpeg_exif", jpeg(3, before=exif))
    part(1, "jpeg_progressive", jpeg(3, progressive=True))
    part(1, "jpeg_ycck", jpeg(4, before=adobe))
    for name, data in WEBP.items():
        part(2, f"webp_{name}", base64.b64decode(data))
    part(3, "gif", gif(4, 4, 1))
    part(3, "gif_animated", gif(2, 2, 3))
    part(4, "bmp_24", bmp(2, 2, 24, 0, b"", bytes(range(16))))
    part(4, "bmp_top_down_32", bmp(2, -2, 32, 3, struct.pack("<III", 0xFF0000, 0xFF00, 0xFF), bytes(range(16))))
    part(4, "bmp_rle", bmp(4, 2, 8, 1, bytes(1024), b"\x04\x01\0\0\0\x04\x01\x02\x03\x04\0\x01"))
    part(5, "url_data", b" data:image/gif;charset=x;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
    part(5, "url_http", b"http://user:password@8888.example:8080/a%20b.png?x=1#y")
    part(6, "web_image", b"8888.example/a.png\n\n" + png(4, 4, 2, 8, bytes(range(12))))
    part(6, "web_redirect", b"8888.example/a.png\n//[2606:4700::1111]/b.png\n")


def adapters() -> None:
    def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for name, (dtype, shape, values) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
            data += values
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data

    def adapter(name: str, settings: dict | None, tensors: bytes) -> None:
        before = b"" if settings is None else json.dumps(settings).encode() + b"\0"
        write("adapter_dir", name, before + tensors)

    def module(path: str, rank: int, dtype: str = "F32") -> dict[str, tuple[str, list[int], bytes]]:
        one = {"F32": b"\0\0\x80\x3f", "F16": b"\0\x3c", "BF16": b"\x80\x3f"}[dtype]
        path = f"base_model.model.model.layers.{path}"
        return {f"{path}.lora_A.weight": (dtype, [rank, 4], one * rank * 4),
                f"{path}.lora_B.weight": (dtype, [3, rank], one * rank * 3)}

    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"],
             "bias": "none", "task_type": None, "use_dora": False, "modules_to_save": [], "init_lora_weights": True}
    patterns = {"peft_type": "LORA", "r": 1, "lora_alpha": 4.5, "use_rslora": True, "target_modules": r".*\.(q|v)_proj",
                "rank_pattern": {r"layers\.[01]\.v_proj": 2}, "alpha_pattern": {"q_proj": 16}}
    adapter("bare", None, safetensors(module("0.q_proj", 2)))
    adapter("plain", plain, safetensors(module("0.q_proj", 2) | module("1.v_proj", 2, "BF16")))
    adapter("patterns", patterns, safetensors(module("0.q_proj", 1, "F16") | module("1.v_proj", 2)))
    adapter("all", plain | {"target_modules": "all-linear"}, safetensors(module("7.mlp.up_proj", 2)))


if __name__ == "__main__":
    chat_bodies()
    image_parts()
    adapters()
