#!/usr/bin/env python3
"""Checks every package of Cargo.lock against deny.toml: its licence, where it comes from, and that it is not banned.

The same verdict as `cargo deny check licenses sources bans`, from `cargo metadata` alone: no tool to install, no network
once the packages are there. Needs Python 3.11 (tomllib).
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def allowed(expression: str, allow: set[str]) -> bool:
    """Whether an SPDX expression can be met with the licences in `allow`.

    `/` is the old way to write OR. AND binds stronger than OR, WITH stronger than both.
    """
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def alternatives() -> list[set[str]] | None:
        options = all_of()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            options = options + all_of()
        return options

    def all_of() -> list[set[str]]:
        options = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            right = one()
            options = [a | b for a in options for b in right]
        return options

    def one() -> list[set[str]]:
        token = tokens.pop(0)
        if token == "(":
            options = alternatives()
            if tokens.pop(0) != ")":
                raise ValueError("unbalanced parenthesis")
            return options
        if token in (")", "AND", "OR", "WITH"):
            raise ValueError(f"unexpected {token}")
        if tokens[:1] == ["WITH"]:
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return [{token}]

    try:
        options = alternatives()
        if tokens:
            raise ValueError(f"unexpected {tokens[0]}")
    except (IndexError, ValueError):
        return False
    return any(option <= allow for option in options)


def self_test() -> None:
    allow = {"MIT", "ISC", "Apache-2.0 WITH LLVM-exception"}
    for expression, expected in [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT/GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT AND ISC", True),
        ("(GPL-3.0-only OR MIT) AND (ISC OR GPL-2.0-only)", True),
        ("Apache-2.0", False),
        ("GPL-3.0-only OR Apache-2.0 WITH LLVM-exception", True),
        ("(MIT", False),
        ("", False),
    ]:
        if allowed(expression, allow) != expected:
            sys.exit(f"licenses.py is broken: {expression!r} should be {expected}")


def main() -> None:
    self_test()
    deny = tomllib.loads((ROOT / "deny.toml").read_text(encoding="utf-8"))
    allow = set(deny["licenses"]["allow"])
    registries = {f"registry+{url}" for url in deny["sources"]["allow-registry"]}
    banned = {entry["crate"] for entry in deny["bans"]["deny"]}
    metadata = json.loads(
        subprocess.run(
            ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"],
            cwd=ROOT, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
        ).stdout
    )
    ours = set(metadata["workspace_members"])
    theirs = {package["license"] or "" for package in metadata["packages"] if package["id"] not in ours}
    wrong = []
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        if package["id"] in ours:
            if package["license"] != "Apache-2.0":
                wrong.append(f"{name}: our own packages are Apache-2.0")
            continue
        if not allowed(package["license"] or "", allow):
            wrong.append(f"{name}: licence {package['license'] or '(none)'} is not met by deny.toml")
        if package["source"] not in registries:
            wrong.append(f"{name}: comes from {package['source'] or 'a path outside the workspace'}")
        if package["name"] in banned:
            wrong.append(f"{name}: is banned by deny.toml")
    for licence in sorted(allow):
        if all(allowed(expression, allow - {licence}) for expression in theirs if allowed(expression, allow)):
            wrong.append(f"{licence}: allowed by deny.toml, needed by no package")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(metadata['packages'])} packages, all under {', '.join(sorted(allow))}")


if __name__ == "__main__":
    main()
