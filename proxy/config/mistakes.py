"""What is wrong with a setting or a field, in a person's words.

pydantic's own sentences ("Extra inputs are not permitted") speak to programmers.
"""

import difflib
from collections.abc import Iterable

from pydantic_core import ErrorDetails


def reason(error: ErrorDetails) -> str:
    """One of pydantic's errors as a sentence that says what is needed. It holds no value."""
    limits = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "required"
        case "int_type" | "int_parsing" | "int_parsing_size" | "int_from_float":
            return "a whole number is needed"
        case "float_type" | "float_parsing" | "finite_number":
            return "a number is needed"
        case "bool_type" | "bool_parsing":
            return "true or false is needed"
        case "string_type":
            return 'a text in quotation marks is needed, as in "this"'
        case "tuple_type" | "list_type":
            return 'a list is needed, as in ["one", "two"]'
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a table is needed, with a name of its own"
        case "literal_error":
            return f"one of these is needed: {limits['expected']}"
        case "greater_than":
            return f"a number above {limits['gt']:g} is needed"
        case "greater_than_equal":
            return f"a number of at least {limits['ge']:g} is needed"
        case "less_than":
            return f"a number below {limits['lt']:g} is needed"
        case "less_than_equal":
            return f"a number of at most {limits['le']:,} is needed"
        case "too_short":
            return f"at least {limits['min_length']} of these is needed"
    return error["msg"].removeprefix("Value error, ")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that comes closest, as the end of a sentence; empty if none is close."""
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that comes closest, whatever its case; None if none is close.

    The time it takes grows with all lengths: whoever passes on a client's text bounds them.
    """
    names = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return names[close[0]] if close else None
