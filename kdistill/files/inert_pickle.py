"""A pickle read as text: opcodes build plain values and records, and nothing is ever run.

``pickle.Unpickler`` imports what a file names and calls it; a restricted one still calls what its
list allows, so we read pickles ourselves.  Here a name stays a ``Name``, a call a ``Made`` with its
arguments, so a file can only describe.  What the records mean is decided elsewhere, by a closed
table.  Opcodes: the documentation of ``pickletools`` (protocols 0 to 5).
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MARK = object()
MAX_MEMO = 1 << 32  # largest number of a memo entry: a chosen one could take forever to look up
MAX_NAME = 1000  # characters of a module's or an object's name
# whole numbers and floats are not among them: many can be chosen to have one hash, and a table of
# those takes forever to fill
_PLAIN_KEYS = (str, bytes, type(None))
_SETS = ("EMPTY_SET", "FROZENSET", "ADDITEMS")


class NotReadable(Exception):
    """The bytes are no pickle, or use an opcode that a network file has no use for."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that the file names and that was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


# written out, a record that holds one thing many times could be endless
@dataclass(eq=False, repr=False, slots=True)
class Made:
    """Something that the file asks to make and that was not made.

    Attributes:
        maker: A ``Name``, or another record.
        arguments: Arguments of the call.
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
    """A persistent id: the file names something that lies outside the pickle."""

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
        megabyte takes about two seconds and 300 MB at worst.  Strings are copied once, and what an
        opcode names again is shared.
    """
    machine = _Machine(plain)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return Parsed(machine.stack.pop(), machine.names, machine.calls, machine.references)
            if opcode.name not in _OPCODES or (plain and opcode.name in _SETS):
                raise NotReadable(f"opcode {opcode.name}")
            _OPCODES[opcode.name](machine, argument)
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

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def put(self, place: int) -> None:
        """Remember the last value."""
        if not 0 <= place < MAX_MEMO:
            raise NotReadable("an impossible number of a memo entry")
        self.memo[place] = self.stack[-1]

    def take(self, count: int) -> list[Any]:
        """Take the last ``count`` values off the stack."""
        values = self.stack[-count:]
        if len(values) < count or any(value is MARK for value in values):
            raise NotReadable("too few values")
        del self.stack[-count:]
        return values

    def take_marked(self) -> list[Any]:
        """Take the values since the last mark off the stack, and the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is MARK:
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise NotReadable("no mark")

    def name(self, module: Any, name: Any) -> Name:
        """Record what the file names."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise NotReadable("a name that is no text")
        if len(module) + len(name) > MAX_NAME:
            raise NotReadable(f"a name of more than {MAX_NAME} characters")
        named = Name(module, name)
        self.names.add(named)
        return named

    def call(self, maker: Any, arguments: Any, *_: Any) -> None:
        """Record a call in the place of its result."""
        if not isinstance(arguments, tuple):
            raise NotReadable("a call whose arguments are no tuple")
        # the tuple itself: a copy for each call would let a small file fill the memory
        self.calls.append(Made(maker, arguments))
        self.push(self.calls[-1])

    def call_instance(self, argument: str) -> None:
        """Record the call of what an opcode names."""
        arguments = tuple(self.take_marked())
        self.call(self.name(*argument.split(" ", 1)), arguments)

    def call_marked(self) -> None:
        """Record a call whose maker and arguments lie after a mark."""
        maker, *arguments = self.take_marked()
        self.call(maker, tuple(arguments))

    def build(self) -> None:
        """Record the state of the last value."""
        (state,) = self.take(1)
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def refer(self, to: Any) -> None:
        """Record a reference to something outside the pickle."""
        self.references.append(Reference(to))
        self.push(self.references[-1])

    def table(self, flat: list[Any]) -> dict[Any, Any]:
        """Return keys and values.

        A key that is not plain counts as itself alone: hashing what it holds can take forever.
        """
        if self.plain and not all(_is_plain_key(key) for key in flat[::2]):
            raise NotReadable(
                "a dictionary with keys that are neither text nor small whole numbers"
            )
        keys = [key if isinstance(key, _PLAIN_KEYS) else Reference(key) for key in flat[::2]]
        return dict(zip(keys, flat[1::2], strict=True))

    def set_items(self, flat: list[Any]) -> None:
        """Set keys of the last value."""
        target = self.stack[-1].items if isinstance(self.stack[-1], Made) else self.stack[-1]
        if not isinstance(target, dict):
            raise NotReadable("items of something that has none")
        target.update(self.table(flat))

    def append(self, values: list[Any]) -> None:
        """Append to the last value."""
        target = self.stack[-1].entries if isinstance(self.stack[-1], Made) else self.stack[-1]
        if not isinstance(target, list):
            raise NotReadable("entries of something that has none")
        target.extend(values)


# what every opcode does with the machine and its own argument; a set counts as a list: what is in
# it is not used, and need not be hashed
_OPCODES: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(
        (
            "INT",
            "BININT",
            "BININT1",
            "BININT2",
            "LONG",
            "LONG1",
            "LONG4",
            "FLOAT",
            "BINFLOAT",
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
            "BINBYTES",
            "SHORT_BINBYTES",
            "BINBYTES8",
            "BYTEARRAY8",
            "UNICODE",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
        ),
        _Machine.push,
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "MARK": lambda machine, _: machine.push(MARK),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.take_marked())),
    "LIST": lambda machine, _: machine.push(machine.take_marked()),
    "FROZENSET": lambda machine, _: machine.push(machine.take_marked()),
    "DICT": lambda machine, _: machine.push(machine.table(machine.take_marked())),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"),
        lambda machine, argument: machine.push(machine.memo[int(argument)]),
    ),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, argument: machine.put(int(argument))
    ),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.take_marked(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.take_marked()),
    "ADDITEMS": lambda machine, _: machine.append(machine.take_marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take_marked()),
    "GLOBAL": lambda machine, argument: machine.push(machine.name(*argument.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.push(machine.name(*machine.take(2))),
    "REDUCE": lambda machine, _: machine.call(*machine.take(2)),
    "NEWOBJ": lambda machine, _: machine.call(*machine.take(2)),
    "NEWOBJ_EX": lambda machine, _: machine.call(*machine.take(3)),
    "INST": _Machine.call_instance,
    "OBJ": lambda machine, _: machine.call_marked(),
    "BUILD": lambda machine, _: machine.build(),
    "PERSID": _Machine.refer,
    "BINPERSID": lambda machine, _: machine.refer(machine.stack.pop()),
}


def _is_plain_key(key: Any) -> bool:
    return isinstance(key, _PLAIN_KEYS) or (isinstance(key, int) and key.bit_length() <= 62)
