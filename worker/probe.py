"""Prints vLLM's flags as JSON; run by vLLM's own Python, never imported by the worker.

Only the last line of the output counts: vLLM prints while it is imported.
"""

import argparse
import importlib
import json
import sys
from typing import Any

# vLLM moves these from time to time; newest first.
PARSER_MODULES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")
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
        off = [name for name in action.option_strings if name.startswith("--no-")]
        return {"kind": "bool", "off": off[0]} if len(off) == 1 else {"kind": "bool"}
    return {"kind": "list" if action.nargs in ("+", "*") else "value"}


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
