"""A pickle read as text: its opcodes build plain values and records of what the file *names*, and nothing is ever run.

``pickle.Unpickler`` imports what a file names and calls it; a restricted one still calls what its
list allows.  Here a name stays a ``Name``, a call a ``Made`` with its arguments, so a file can only
describe.  What the records mean is decided elsewhere, by a
closed table.  Opcodes: the documentation of ``pickletools`` (protocols 0 to 5).
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MARK = object()

_IGNORED = ("PROTO", "FRAME")
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # what is in a set is not looked at, and need not be hashed
}
_SETS = ("EMPTY_SET", "FROZENSET", "ADDITEMS")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FROM_MARK: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": list,  # a table is made of it
    "FROZENSET": list,
}
# whole numbers and floats are not among them: many can be chosen to have one hash, and a table of
# those takes forever to fill
_PLAIN_KEYS = (str, bytes, type(None))
MAX_MEMO = 1 << 32  # largest number of a memo entry, for the same reason
MAX_NAME = 1000  # characters of a module's or an object's name


class NotReadable(Exception):
    """The bytes are no pickle, or use an opcode that a network file has no use for."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that the file names and that was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(
    eq=False, repr=False, slots=True
)  # written out, a record that holds one thing many times could be endless
class Made:
    """Something that the file asks to make and that was not made.

    Attributes:
        maker: A ``Name``, or another record.
        arguments: Of the call.
        state: What ``__setstate__`` would get.
        items: What would be set by key.
        entries: What would be appended or added.
    """

    maker: Any
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Reference:
    """A persistent id: the file names something that is kept outside the pickle."""

    to: Any


@dataclass
class Parsed:
    """A value, and every name, call and reference on the way to it."""

    value: Any
    names: set[Name]
    calls: list[Made]
    references: list[Reference]


def parse(stream: bytes | BinaryIO, *, plain: bool = False) -> Parsed:
    """Return what one pickle describes; a stream is left right behind it.

    Args:
        stream: The bytes.
        plain: Refuse sets, and dictionaries whose keys are not text, None or whole numbers of 62
            bits: an unpickler would hash them, which takes forever for keys that are chosen for it.

    Raises:
        NotReadable: Truncated or malformed bytes, or an opcode of extensions or shared buffers.

    Cost: one pass over the opcodes, each of which makes at most one small object: a file of one
        megabyte takes about two seconds
    and 300 MB at worst.  Strings are copied once, and what an opcode names again is shared.
    """
    machine = _Machine(plain)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return Parsed(machine.stack.pop(), machine.names, machine.calls, machine.references)
            machine.take(opcode.name, argument)
    except NotReadable:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        raise NotReadable(f"{type(error).__name__}: {error}") from error
    raise NotReadable("it ends before its end")


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, plain: bool) -> None:
        self.plain = plain
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: set[Name] = set()
        self.calls: list[Made] = []
        self.references: list[Reference] = []

    def take(self, op: str, argument: Any) -> None:
        stack = self.stack
        if self.plain and op in _SETS:
            raise NotReadable("a set")
        if op in _VALUES:
            stack.append(argument)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op]())
        elif op == "MARK":
            stack.append(MARK)
        elif op in _TUPLES:
            stack[-_TUPLES[op] :] = [tuple(self.popped(_TUPLES[op]))]
        elif op in _FROM_MARK:
            values = self.since_mark()
            stack.append(self.table(values) if op == "DICT" else _FROM_MARK[op](values))
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif op in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(self.memo) if op == "MEMOIZE" else int(argument)
            if not 0 <= place < MAX_MEMO:
                raise NotReadable("an impossible number of a memo entry")
            self.memo[place] = stack[-1]
        elif op == "POP":
            stack.pop()
        elif op == "POP_MARK":
            self.since_mark()
        elif op == "DUP":
            stack.append(stack[-1])
        elif op not in _IGNORED:
            self.build(op, argument)

    def build(self, op: str, argument: Any) -> None:
        """Take an opcode that names, makes or fills something."""
        stack = self.stack
        if op in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [stack.pop()] if op == "APPEND" else self.since_mark()
            self.fill(stack[-1], values)
        elif op in ("SETITEM", "SETITEMS"):
            flat = self.popped_off(2) if op == "SETITEM" else self.since_mark()
            target = stack[-1].items if isinstance(stack[-1], Made) else stack[-1]
            if not isinstance(target, dict):
                raise NotReadable("items of something that has none")
            target.update(self.table(flat))
        elif op == "GLOBAL":
            self.name(*argument.split(" ", 1))
        elif op == "STACK_GLOBAL":
            self.name(*self.popped_off(2))
        elif op in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            maker, arguments, *_ = self.popped_off(3 if op == "NEWOBJ_EX" else 2)
            if not isinstance(arguments, tuple):
                raise NotReadable("a call whose arguments are no tuple")
            self.call(
                maker, arguments
            )  # the tuple itself: a copy for each call would let a small file fill the memory
        elif op == "INST":
            values = self.since_mark()
            self.name(*argument.split(" ", 1))
            self.call(stack.pop(), tuple(values))
        elif op == "OBJ":
            maker, *values = self.since_mark()
            self.call(maker, tuple(values))
        elif op == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Made):
                stack[-1].state = state
        elif op in ("PERSID", "BINPERSID"):
            self.references.append(Reference(argument if op == "PERSID" else stack.pop()))
            stack.append(self.references[-1])
        else:
            raise NotReadable(f"opcode {op}")

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise NotReadable("a name that is no text")
        if len(module) + len(name) > MAX_NAME:
            raise NotReadable(f"a name of more than {MAX_NAME} characters")
        named = Name(module, name)
        self.names.add(named)
        self.stack.append(named)

    def call(self, maker: Any, arguments: tuple[Any, ...]) -> None:
        self.calls.append(Made(maker, arguments))
        self.stack.append(self.calls[-1])

    def table(self, flat: list[Any]) -> dict[Any, Any]:
        """Return keys and values; a key that is not plain counts as itself alone: hashing what it holds can take forever."""
        if self.plain and not all(_is_plain_key(key) for key in flat[::2]):
            raise NotReadable(
                "a dictionary with keys that are neither text nor small whole numbers"
            )
        keys = [key if isinstance(key, _PLAIN_KEYS) else Reference(key) for key in flat[::2]]
        return dict(zip(keys, flat[1::2], strict=True))

    def fill(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Made):
            target.entries.extend(values)
        else:
            raise NotReadable("entries of something that has none")

    def popped(self, count: int) -> list[Any]:
        """Return the last ``count`` values, which the caller replaces."""
        if len(self.stack) < count or any(x is MARK for x in self.stack[-count:]):
            raise NotReadable("too few values")
        return self.stack[-count:]

    def popped_off(self, count: int) -> list[Any]:
        values = self.popped(count)
        del self.stack[-count:]
        return values

    def since_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is MARK:
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise NotReadable("no mark")


def _is_plain_key(key: Any) -> bool:
    return isinstance(key, _PLAIN_KEYS) or (isinstance(key, int) and key.bit_length() <= 62)
