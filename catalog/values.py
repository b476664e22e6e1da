"""Values of a column of a user's table as ids, numbers and lists, whatever type Arrow gives them.

Lists in text are `[1, 2]` or `['a', 'b']`, as JSON, Python or NumPy write them, or values between spaces,
commas, `;` or `|`. Codes may also be the tokens of other systems, one per level: `<a_12><b_3><c_255>`.
"""

import ast
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*$"
# By bits of a float: below this it holds every whole number.
FLOAT_LIMITS = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}
# What programs write for a value that is not there. No user and no item has such an id.
MISSING_WORDS = pa.array(["nan", "NaN", "None", "null", "NULL", "<NA>"])
_BETWEEN_IDS = re.compile(r"[\s;|]+")
_BETWEEN_NUMBERS = re.compile(r"[\s,;|\[\]()'\"]+")
_LISTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|([^\s'"\[\]]+)""")
_TOKEN = re.compile(r"<(\w*?)[_-]?(\d+)>")

# What a column of each kind may be, as a family of Arrow types.
_TEXT = ("text", "null")
_NUMBERS = ("whole", "float", "decimal", "bool", *_TEXT)
FAMILIES = {
    "id": ("whole", "float", "decimal", "bytes", "uuid", *_TEXT),
    "time": ("whole", "float", "decimal", "date", *_TEXT),
    "number": _NUMBERS,
    "label": ("bytes", "uuid", *_NUMBERS),
    "list": ("list", *_TEXT),
    "attribute": ("list", "date", "bytes", *_NUMBERS),
}


def family_of(kind: pa.DataType) -> str:
    """The family of an Arrow type: one of those in `FAMILIES`, or the name of the type itself."""
    tests = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        "whole": (pa.types.is_integer,),
        "float": (pa.types.is_floating,),
        "decimal": (pa.types.is_decimal,),
        "bool": (pa.types.is_boolean,),
        "bytes": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
        "date": (pa.types.is_timestamp, pa.types.is_date),
        "null": (pa.types.is_null,),
    }
    if isinstance(kind, pa.UuidType):
        return "uuid"
    if isinstance(kind, pa.BaseExtensionType):
        return family_of(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return family_of(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = family_of(kind.value_type)
        return "list" if inner in (*_NUMBERS, "bytes", "uuid") else str(kind)
    return next((name for name, checks in tests.items() if any(is_it(kind) for is_it in checks)), str(kind))


def as_text(values: pa.Array) -> pa.Array:
    """Any scalar column as text, null where there is none: for NaN, and for bytes that are no UTF-8.

    Whole floats and decimals lose their `.0`, so that an id reads the same from every file type.
    """
    values = _plain(values)
    if pa.types.is_floating(values.type):
        numbers = as_numpy(values.cast(pa.float64()).fill_null(np.nan))
        whole = (numbers == np.floor(numbers)) & ~is_inexact(values)
        digits = pa.array(np.where(whole, numbers, 0).astype(np.int64)).cast(pa.string())
        other = pa.array(numbers, from_pandas=True).cast(pa.string())
        return pc.if_else(pa.array(whole), digits, other)
    if pa.types.is_decimal(values.type):
        return pc.replace_substring_regex(values.cast(pa.string()), r"\.0+$", "")
    if family_of(values.type) == "bytes":
        return pa.array([_decoded(value) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def is_missing(values: pa.Array) -> np.ndarray:
    """bool [n]: null, NaN, or text of nothing but spaces."""
    if pa.types.is_floating(values.type):
        return as_numpy(values.is_null(nan_is_null=True))
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(as_text(values))), 0)
    return as_numpy(blank.fill_null(True))


def is_inexact(values: pa.Array) -> np.ndarray:
    """bool [n]: a float so large that the next whole number is the same float, or infinite."""
    if not pa.types.is_floating(values.type):
        return np.zeros(len(values), dtype=bool)
    numbers = as_numpy(values.cast(pa.float64()).fill_null(0))
    inexact: np.ndarray = np.abs(numbers) >= FLOAT_LIMITS[values.type.bit_width]
    return inexact


def is_undecodable(values: pa.Array) -> np.ndarray:
    """bool [n]: bytes that are no UTF-8 text."""
    values = _plain(values)
    if family_of(values.type) != "bytes":
        return np.zeros(len(values), dtype=bool)
    lost: np.ndarray = as_numpy(as_text(values).is_null()) & ~as_numpy(values.is_null())
    return lost


def parse_numbers(values: pa.Array) -> np.ndarray:
    """float64 [n]; NaN where there is no number. `nan` and `inf` as text are no numbers."""
    if (
        pa.types.is_integer(values.type)
        or pa.types.is_floating(values.type)
        or pa.types.is_decimal(values.type)
    ):
        return as_numpy(values.cast(pa.float64(), safe=False).fill_null(np.nan))
    text = as_text(values)
    numeric = pc.match_substring_regex(text, _NUMBER)
    picked = pc.if_else(numeric.fill_null(False), pc.utf8_trim_whitespace(text), None)
    return as_numpy(picked.cast(pa.float64()).fill_null(np.nan))


def text_lists(values: pa.Array) -> pa.LargeListArray:
    """Lists of text [n], from list columns or from text; null: cannot be read, empty: there is nothing."""
    values = _plain(values)
    if family_of(values.type) == "list":
        lengths = as_numpy(pc.list_value_length(values).fill_null(0)).astype(np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
        return pa.LargeListArray.from_arrays(offsets, as_text(values.flatten()))
    texts = [_split_list(text or "") for text in as_text(values).to_pylist()]
    return pa.array(texts, pa.large_list(pa.string()))


def number_lists(values: pa.Array) -> list[list[float] | None]:
    """Lists of numbers, from list columns or from text; None where there is none or it cannot be read."""
    values = _plain(values)
    is_text = not pa.types.is_nested(values.type)
    levels: dict[int, str] = {}  # what the tokens of a level have before their number
    rows = as_text(values).to_pylist() if is_text else values.to_pylist()
    return [None if not row else _numbers(row, levels) for row in rows]


def as_numpy(values: pa.Array) -> np.ndarray:
    """A copy where Arrow's memory is laid out differently (bits, nulls)."""
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


def _plain(values: pa.Array) -> pa.Array:
    """Without dictionaries and extension types; UUIDs as their text."""
    if isinstance(values.type, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())
    if isinstance(values.type, pa.BaseExtensionType):
        return _plain(values.storage)
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _split_list(text: str) -> list[str] | None:
    """The values of a list in text; None when its brackets or quotes do not close."""
    text = text.strip()
    if text.startswith("[") != text.endswith("]"):
        return None
    inner = text[1:-1] if text.startswith("[") else text
    parts = _split_quoted(inner) if "'" in inner or '"' in inner else _split_bare(inner)
    return None if parts is None or "..." in parts else parts  # NumPy leaves out the middle of a long list


def _split_bare(text: str) -> list[str] | None:
    if "[" in text or "]" in text:
        return None
    if "," in text:
        return [part.strip() for part in text.split(",")]
    return [part for part in _BETWEEN_IDS.split(text) if part]


def _split_quoted(text: str) -> list[str] | None:
    parts, end = [], 0
    for match in _LISTED.finditer(text):
        if text[end : match.start()].strip():
            return None
        end, (quoted, bare) = match.end(), match.groups()
        if quoted:
            parts.append(str(ast.literal_eval(quoted)))
        elif bare.strip(","):
            parts.append(bare.strip(","))
    return None if text[end:].strip() else parts


def _numbers(row: str | list[object], levels: dict[int, str]) -> list[float] | None:
    pieces = [row] if isinstance(row, str) else row
    if any(isinstance(piece, str) and "<" in piece for piece in pieces):
        text = " ".join(map(str, pieces))
        if _BETWEEN_NUMBERS.sub("", _TOKEN.sub("", text)):
            return None
        tokens = _TOKEN.findall(text)
        in_order = all(levels.setdefault(level, name) == name for level, (name, _) in enumerate(tokens))
        return [float(code) for _, code in tokens] if in_order else None
    parts = [part for part in _BETWEEN_NUMBERS.split(row) if part] if isinstance(row, str) else row
    try:
        return [float(part) for part in parts] or None  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
