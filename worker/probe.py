"""Prints vLLM's flags as JSON; run by vLLM's own Python, never imported by the worker.

Only the last line of the output counts: vLLM prints while it is imported.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

# vLLM moves these from time to time; newest first.
PARSER_MODULES = (
    "vllm.entrypoints.common.cli_args",  # 0.33
    "vllm.entrypoints.launchers.cli_args",  # 0.32
    "vllm.entrypoints.openai.cli_args",
)
ARGPARSE_MODULES = ("vllm.utils.argparse_utils", "vllm.utils")


def find(name: str, modules: tuple[str, ...]) -> Any:
    """The first of these modules' attribute of that name."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"no {name} in {', '.join(modules)}")


def choose_a_platform() -> None:
    """Stand on the CPU where there is no GPU: images are built on such machines."""
    platforms: Any = importlib.import_module("vllm.platforms")
    if platforms.current_platform.is_unspecified():
        cpu = importlib.import_module("vllm.platforms.cpu")
        platforms.current_platform = cpu.CpuPlatform()


def describe(action: argparse.Action) -> dict[str, str]:
    """What the worker needs to know to set this flag from a variable."""
    if action.nargs == 0:
        off = off_form(action.option_strings)
        return {"kind": "bool", "off": off} if off else {"kind": "bool"}
    return {"kind": "list" if action.nargs in ("+", "*") else "value"}


def off_form(names: Sequence[str]) -> str | None:
    """Of a boolean's names the one that turns it off.

    That is `--no-x`; since vLLM 0.33 also `--disable-x` for `--enable-x`, and the other way round.
    """
    first = next(name for name in names if name.startswith("--"))
    opposites = {f"--no-{first[2:]}"}
    for one, other in (("--enable-", "--disable-"), ("--disable-", "--enable-")):
        if first.startswith(one):
            opposites.add(other + first.removeprefix(one))
    return next((name for name in names if name in opposites), None)


def main() -> None:
    """Print one line of JSON."""
    vllm = importlib.import_module("vllm")
    choose_a_platform()
    new_parser = find("FlexibleArgumentParser", ARGPARSE_MODULES)
    parser = find("make_arg_parser", PARSER_MODULES)(new_parser())
    flags = {
        next(name for name in action.option_strings if name.startswith("--")): describe(action)
        for action in parser._actions
        if action.option_strings and action.dest != "help"
    }
    found = {"vllm": vllm.__version__, "flags": dict(sorted(flags.items()))}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
