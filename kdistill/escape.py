"""Text of other people, made harmless where it is shown: terminal, Markdown, YAML, JSON.

File names, class names and whatever a file says may hold control characters that move the cursor or
hide a line, marks that reverse the direction of reading, and markup.  Everything that kdistill
prints or writes for people passes through here.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Callable

# of an error; a longer one keeps its beginning and its end, where the hint stands
MESSAGE_CHARACTERS = 20_000

# categories of characters that act on a terminal instead of being shown: control, format, lone
# surrogates, separators of lines
_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
# invisible, but Persian, the scripts of India and emoji are misspelt without them
_JOINERS = "\u200c\u200d"
# what begins markup: code, tables, mathematics; emphasis (an end without a beginning is none);
# links, addresses; blocks
_MARKUP = re.compile(
    r"[\\`|$@]|[*~](?=\S)|(?<![^\W_])_(?=\S)|\](?=[(\[:])|(?<=:)//|(?i:(?<=www)\.)"
    r"|^[-+*#](?=[ #-])|(?<=^\d)[.)](?= )"
)
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def printable(text: object) -> str:
    r"""Return ``text`` with every character that would act on a terminal as ``\u001b`` and so on.

    Line breaks and tabs stay.  Bidirectional overrides, zero-width characters and lone surrogates
    are written out too.
    """
    return _written_out(str(text), "\n\t")


def one_line(text: object, characters: int | None = None) -> str:
    """Return ``printable`` text on one line, runs of white space as one space.

    Args:
        text: Anything.
        characters: Length at which a text is cut off with an ellipsis; None never cuts.
    """
    whole = str(text)
    if characters is None or len(whole) <= characters:
        return _written_out(" ".join(whole.split()), "")
    return _written_out(" ".join(whole[:characters].split()), "") + "…"


def markdown(text: object) -> str:
    """Return one line of Markdown that shows ``text`` as it is.

    No emphasis, code, link, picture, HTML or table cell can be in it.
    """
    line = re.sub("[&<>]", lambda match: _ENTITIES[match[0]], one_line(text))
    return _MARKUP.sub(lambda match: "\\" + "\\".join(match[0]), line)


def code(text: object) -> str:
    """Return a Markdown code span of ``text`` with any backticks; not for table cells."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if line[:1] in ("`", " ", "") or line[-1:] in ("`", " ") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def json_text(value: object, indent: int | None = None) -> str:
    """Return JSON that can be shown and read back; what would act on a terminal is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, sort_keys=indent is not None)
    return _written_out(text, "\n", lambda character: json.dumps(character)[1:-1])


def yaml(text: object) -> str:
    """Return ``text`` as a double-quoted YAML scalar."""
    return _written_out(json.dumps(str(text), ensure_ascii=False), "")


def message(text: str) -> str:
    """Return the text of an error: printable, and of a length that can be read."""
    if len(text) > MESSAGE_CHARACTERS:
        text = f"{text[: MESSAGE_CHARACTERS - 500]} … {text[-500:]}"
    return printable(text)


def clean_record(record: logging.LogRecord) -> bool:
    """Make a log record printable: a filter of the logger ``kdistill``."""
    record.msg, record.args = message(record.getMessage()), ()
    return True


def _written_out(text: str, allowed: str, write: Callable[[str], str] | None = None) -> str:
    if text.isprintable():  # the common case: one pass in C
        return text
    write = write or _code_point
    return "".join(
        character
        if character in allowed
        or character in _JOINERS
        or unicodedata.category(character) not in _ACTING
        else write(character)
        for character in text
    )


def _code_point(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
