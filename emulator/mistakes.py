"""What is wrong with the settings, in a person's words: pydantic's speak to programmers."""

import difflib
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from emulator.settings import (
    BalancingSettings,
    EmulatorSettings,
    EndpointSettings,
    Fault,
    LatencySettings,
    Limit,
    RoadSettings,
)

_TABLES: dict[str, type[BaseModel]] = {
    "endpoints": EndpointSettings,
    "faults": Fault,
    "latency": LatencySettings,
    "balancing": BalancingSettings,
    "limits": Limit,
    "road": RoadSettings,
}


def explained(error: ValidationError) -> list[str]:
    """One sentence for each mistake, with the path of the value."""
    sentences = []
    for one in error.errors(include_url=False):
        path = ".".join(map(str, one["loc"]))
        sentences.append(f"{path}: {_reason(one)}" if path else _reason(one))
    return sentences


def _reason(error: ErrorDetails) -> str:
    limits = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "required"
        case "extra_forbidden":
            return f"there is no such field{_did_you_mean(error['loc'])}"
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number is needed"
        case "float_type" | "float_parsing" | "finite_number":
            return "a number is needed"
        case "bool_type" | "bool_parsing":
            return "true or false is needed"
        case "string_type":
            return "a text in quotation marks is needed"
        case "string_pattern_mismatch":
            return "letters, digits, - and _ alone are allowed"
        case "tuple_type" | "list_type":
            return f"a list is needed, or tables that begin with [[{error['loc'][0]}]]"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a table is needed"
        case "literal_error":
            return f"one of these is needed: {limits['expected']}"
        case "greater_than":
            return f"a number above {limits['gt']:g} is needed"
        case "greater_than_equal":
            return f"a number of at least {limits['ge']:g} is needed"
        case "less_than":
            return f"a number below {limits['lt']:g} is needed"
        case "less_than_equal":
            return f"a number of at most {limits['le']:g} is needed"
    return error["msg"].removeprefix("Value error, ")


def _did_you_mean(path: Sequence[int | str]) -> str:
    known: Iterable[str] = EmulatorSettings.model_fields
    for part in path[:-1]:
        if part in _TABLES:
            known = _TABLES[str(part)].model_fields
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
