"""Reading the plain part of YAML by rules, so that every fault has a line and a field.

A document is one tree of mappings, lists and scalars: no tags, anchors, aliases or second
document, so a small file can't grow when it is read. A reader is a function from a node and the
name of its field to a value; it raises `Fault`. What a scalar means is decided by its reader,
not by YAML's guesses: ``no`` is never false, and ``1:30`` is never ninety.
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

import yaml

__all__ = [
    "DEPTH_MAX",
    "DOCUMENT_BYTES_MAX",
    "Fault",
    "Field",
    "Reader",
    "boolean",
    "choice",
    "duration_ms",
    "encoded_bytes",
    "identifier",
    "integer",
    "integer_or",
    "line_of",
    "listing",
    "mapping",
    "micro",
    "milli",
    "one_of",
    "parse",
    "share",
    "size_bytes",
    "text",
]

DOCUMENT_BYTES_MAX = 512 * 1024
DEPTH_MAX = 8
_SHOWN_CHARACTERS_MAX = 60
_DIGITS_MAX = 20

_T = TypeVar("_T")
_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_INTEGER = re.compile(rf"-?[0-9]{{1,{_DIGITS_MAX}}}")
_DECIMAL = re.compile(rf"-?[0-9]{{1,{_DIGITS_MAX}}}(\.[0-9]{{1,{_DIGITS_MAX}}})?")
_SHARE = re.compile(r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,12})?(e-[1-9])?")
_DURATION = re.compile(rf"([0-9]{{1,{_DIGITS_MAX}}})(ms|s|m|h)")
_SIZE = re.compile(rf"([0-9]{{1,{_DIGITS_MAX}}})(B|KiB|MiB|GiB|TiB)")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Fault(Exception):
    """What is wrong with a document, and where.

    Attributes:
        line: the line of the value, from 1.
        field: the dotted path of the field; empty for the document itself.
        rule: what the value must be.
        value: the value as it stands there, shortened; empty where there is none.
    """

    def __init__(self, line: int, field: str, rule: str, value: str = "") -> None:
        where = f"line {line}" + (f": {field}" if field else "")
        super().__init__(f"{where}: {rule}" + (f", got {value}" if value else ""))
        self.line = line
        self.field = field
        self.rule = rule
        self.value = value


Reader = Callable[[yaml.Node, str], _T]


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a mapping: the attribute that takes its value, and how it is read."""

    attribute: str
    read: Callable[[yaml.Node, str], object]
    required: bool = False


def parse(document: bytes) -> yaml.Node:
    """The tree of a document, its values unread.

    Raises:
        Fault: it is too large, not UTF-8, not YAML, empty, or uses what we refuse.
    """
    if len(document) > DOCUMENT_BYTES_MAX:
        raise Fault(1, "", f"must have at most {DOCUMENT_BYTES_MAX} bytes", str(len(document)))
    try:
        content = document.decode("utf-8")
    except UnicodeDecodeError as error:
        line = document.count(b"\n", 0, error.start) + 1
        raise Fault(line, "", "must be UTF-8", f"byte 0x{document[error.start]:02x}") from None
    try:
        root = yaml.compose(content, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise Fault(line, "", f"must be YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = content.count("\n", 0, error.position) + 1
        raise Fault(line, "", "must be YAML without control characters", ascii(error.character)) from None
    if root is None:
        raise Fault(1, "", "must not be empty")
    return root


def line_of(root: yaml.Node, field: str) -> int | None:
    """The line of the value at a dotted path, from 1, or None if the document doesn't give it."""
    node = root
    for name in field.split("."):
        inner = [value for key, value in node.value if key.value == name]
        if not inner:
            return None
        node = inner[0]
    return node.start_mark.line + 1


def mapping(make: Callable[..., _T], fields: Mapping[str, Field]) -> Reader[_T]:
    """Reads a mapping whose keys are ``fields`` and gives their values to ``make``.

    What is absent and not required is left to the defaults of ``make``.
    """

    def read(node: yaml.Node, path: str) -> _T:
        if not isinstance(node, yaml.MappingNode):
            raise _fault(node, path, "must be a mapping of fields to values")
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            name = _key(key_node, path)
            inner = _join(path, name)
            field = fields.get(name)
            if field is None:
                raise _fault(key_node, inner, _unknown(name, fields), shown=False)
            if field.attribute in values:
                raise _fault(key_node, inner, "must be given only once", shown=False)
            values[field.attribute] = field.read(value_node, inner)
        for name, field in fields.items():
            if field.required and field.attribute not in values:
                raise _fault(node, _join(path, name), "is required", shown=False)
        return make(**values)

    return read


def one_of(key: str, readers: Mapping[str, Reader[_T]]) -> Reader[_T]:
    """Reads a mapping whose value at ``key`` says which of ``readers`` reads it."""
    which = choice(*readers)

    def read(node: yaml.Node, path: str) -> _T:
        if not isinstance(node, yaml.MappingNode):
            raise _fault(node, path, "must be a mapping of fields to values")
        for key_node, value_node in node.value:
            if _key(key_node, path) == key:
                return readers[which(value_node, _join(path, key))](node, path)
        raise _fault(node, _join(path, key), "is required", shown=False)

    return read


def listing(element: Reader[_T], *, length_max: int, length_min: int = 0) -> Reader[tuple[_T, ...]]:
    """Reads a list of ``length_min`` to ``length_max`` elements."""

    def read(node: yaml.Node, path: str) -> tuple[_T, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise _fault(node, path, "must be a list")
        if len(node.value) > length_max:
            raise _fault(node, path, f"must have at most {length_max} elements", value=str(len(node.value)))
        if len(node.value) < length_min:
            raise _fault(node, path, f"must have at least {length_min} elements", value=str(len(node.value)))
        return tuple(element(inner, f"{path}[{index}]") for index, inner in enumerate(node.value))

    return read


def text(*, bytes_max: int) -> Reader[str]:
    """Reads text of 1 to ``bytes_max`` bytes of UTF-8."""

    def read(node: yaml.Node, path: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _fault(node, path, "must be text")
        if node.tag != "tag:yaml.org,2002:str":
            raise _fault(node, path, "must be text (put it in quotes)")
        value = str(node.value)
        try:
            length = len(value.encode("utf-8"))
        except UnicodeEncodeError:
            raise _fault(node, path, "must be text without lone surrogates") from None
        if not 1 <= length <= bytes_max:
            raise _fault(node, path, f"must have 1 to {bytes_max} bytes", value=f"{length} bytes")
        return value

    return read


def identifier(*, bytes_max: int) -> Reader[str]:
    """Reads a name: letters, digits, ``.``, ``_`` and ``-``, beginning with a letter or digit."""
    inner = text(bytes_max=bytes_max)

    def read(node: yaml.Node, path: str) -> str:
        value = inner(node, path)
        if not _IDENTIFIER.fullmatch(value):
            raise _fault(
                node, path, "must be letters, digits, '.', '_' and '-', beginning with a letter or digit"
            )
        return value

    return read


def choice(*allowed: str) -> Reader[str]:
    """Reads one of a few words."""
    rule = f"must be {allowed[0]}" if len(allowed) == 1 else f"must be one of {', '.join(allowed)}"

    def read(node: yaml.Node, path: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.value not in allowed:
            raise _fault(node, path, rule)
        return str(node.value)

    return read


def integer(minimum: int, maximum: int) -> Reader[int]:
    """Reads a decimal integer within bounds, both included."""

    def read(node: yaml.Node, path: str) -> int:
        match = _plain(node, _INTEGER)
        if match is None or not minimum <= int(match.string) <= maximum:
            raise _fault(node, path, f"must be an integer from {minimum} to {maximum}")
        return int(match.string)

    return read


def integer_or(word: str, minimum: int, maximum: int) -> Reader[int | None]:
    """Reads an integer within bounds, or ``word`` as None."""
    inner = integer(minimum, maximum)

    def read(node: yaml.Node, path: str) -> int | None:
        if isinstance(node, yaml.ScalarNode) and node.value == word:
            return None
        try:
            return inner(node, path)
        except Fault as fault:
            raise Fault(fault.line, fault.field, f"{fault.rule}, or {word}", fault.value) from None

    return read


def boolean() -> Reader[bool]:
    """Reads ``true`` or ``false``, and no other spelling."""
    inner = choice("false", "true")

    def read(node: yaml.Node, path: str) -> bool:
        return inner(node, path) == "true"

    return read


def milli(minimum: int, maximum: int) -> Reader[int]:
    """Reads a decimal number with at most three decimals as thousandths; bounds are in units."""
    return _scaled(minimum, maximum, 3)


def micro(minimum: int, maximum: int) -> Reader[int]:
    """Reads a decimal number with at most six decimals as millionths; bounds are in units."""
    return _scaled(minimum, maximum, 6)


def _scaled(minimum: int, maximum: int, decimals: int) -> Reader[int]:
    scale = 10**decimals

    def read(node: yaml.Node, path: str) -> int:
        match = _plain(node, _DECIMAL)
        parts = Decimal(match.string) * scale if match is not None else None
        if parts is None or parts != int(parts) or not minimum * scale <= parts <= maximum * scale:
            rule = f"must be a number from {minimum} to {maximum} with at most {decimals} decimals"
            raise _fault(node, path, rule)
        return int(parts)

    return read


def encoded_bytes(*, bytes_max: int) -> Reader[bytes]:
    """Reads base64 of 1 to ``bytes_max`` bytes."""

    def read(node: yaml.Node, path: str) -> bytes:
        try:
            if not isinstance(node, yaml.ScalarNode):
                raise ValueError
            value = base64.b64decode("".join(node.value.split()), validate=True)
        except ValueError:
            raise _fault(node, path, "must be base64") from None
        if not 1 <= len(value) <= bytes_max:
            raise _fault(node, path, f"must have 1 to {bytes_max} bytes", value=f"{len(value)} bytes")
        return value

    return read


def share(parts: int, minimum: str, maximum: str) -> Reader[int]:
    """Reads a share such as ``0.05`` or ``1e-3`` as so many of ``parts``; both bounds are included."""
    least, most = Decimal(minimum), Decimal(maximum)

    def read(node: yaml.Node, path: str) -> int:
        match = _plain(node, _SHARE)
        value = Decimal(match.string) if match is not None else None
        if value is None or not least <= value <= most or value * parts != int(value * parts):
            raise _fault(node, path, f"must be a share from {minimum} to {maximum}, in whole 1/{parts:,}")
        return int(value * parts)

    return read


def duration_ms(minimum_ms: int, maximum_ms: int) -> Reader[int]:
    """Reads a duration such as ``500ms``, ``30s``, ``5m`` or ``1h`` as milliseconds."""
    return _quantity(_DURATION, _MILLISECONDS, "duration", minimum_ms, maximum_ms)


def size_bytes(minimum_bytes: int, maximum_bytes: int) -> Reader[int]:
    """Reads a size such as ``512MiB`` or ``1GiB`` as bytes."""
    return _quantity(_SIZE, _BYTES, "size", minimum_bytes, maximum_bytes)


def _quantity(
    pattern: re.Pattern[str], units: Mapping[str, int], what: str, minimum: int, maximum: int
) -> Reader[int]:
    rule = (
        f"must be a {what} from {_in_units(minimum, units)} to {_in_units(maximum, units)}: "
        f"a whole number and one of {', '.join(units)}"
    )

    def read(node: yaml.Node, path: str) -> int:
        match = _plain(node, pattern, quoted=True)
        value = int(match[1]) * units[match[2]] if match is not None else None
        if value is None or not minimum <= value <= maximum:
            raise _fault(node, path, rule)
        return value

    return read


def _in_units(value: int, units: Mapping[str, int]) -> str:
    fitting = [name for name, factor in units.items() if value % factor == 0 and factor <= max(value, 1)]
    unit = fitting[-1]
    return f"{value // units[unit]}{unit}"


def _plain(node: yaml.Node, pattern: re.Pattern[str], *, quoted: bool = False) -> re.Match[str] | None:
    if not isinstance(node, yaml.ScalarNode) or (node.style is not None and not quoted):
        return None
    return pattern.fullmatch(node.value)


def _key(node: yaml.Node, path: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _fault(node, path, "must have plain words as keys")
    return str(node.value)


def _unknown(name: str, fields: Mapping[str, Field]) -> str:
    near = difflib.get_close_matches(name, fields, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}"
    return f"is not a field; {hint}"


def _join(path: str, name: str) -> str:
    name = name if len(name) <= _SHOWN_CHARACTERS_MAX else f"{name[:_SHOWN_CHARACTERS_MAX]}…"
    return f"{path}.{name}" if path else name


def _fault(node: yaml.Node, path: str, rule: str, *, value: str | None = None, shown: bool = True) -> Fault:
    if value is None:
        value = _show(node) if shown else ""
    return Fault(node.start_mark.line + 1, path, rule, value)


def _show(node: yaml.Node) -> str:
    match node:
        case yaml.MappingNode():
            return "a mapping"
        case yaml.SequenceNode():
            return "a list"
    value = str(node.value)
    if node.tag == "tag:yaml.org,2002:null" and not value:
        return "nothing"
    shortened = value if len(value) <= _SHOWN_CHARACTERS_MAX else f"{value[:_SHOWN_CHARACTERS_MAX]}…"
    return ascii(shortened) if not shortened.isprintable() else repr(shortened)


class _PlainLoader(yaml.SafeLoader):
    """Stops at the first anchor, alias, tag or needless depth, before anything is built of it."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def get_event(self) -> yaml.Event:
        """The parser's next event, if it is plain."""
        event: yaml.Event = super().get_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        if isinstance(event, yaml.AliasEvent):
            raise Fault(line, "", "must not use aliases", f"*{event.anchor}")
        if isinstance(event, yaml.CollectionEndEvent):
            self._depth -= 1
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent):
            if event.anchor is not None:
                raise Fault(line, "", "must not use anchors", f"&{event.anchor}")
            if event.tag is not None:
                raise Fault(line, "", "must not use tags", event.tag[:_SHOWN_CHARACTERS_MAX])
        if isinstance(event, yaml.CollectionStartEvent):
            self._depth += 1
            if self._depth > DEPTH_MAX:
                raise Fault(line, "", f"must not be nested deeper than {DEPTH_MAX} levels")
        return event
