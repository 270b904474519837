"""Names in a pickle that a network has no use for and an attack has."""

from collections.abc import Iterable

from kdistill.files.inert_pickle import Name

# names that a network has no use for and an attack has: nothing is run either way, but whoever
# opens the file with the stock loader should be warned
_HOSTILE_MODULES = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "pty", "runpy", "importlib",
    "ctypes", "_ctypes", "code", "codeop", "commands", "pickle", "_pickle", "cPickle", "marshal",
    "urllib", "requests", "http", "ftplib", "smtplib", "webbrowser", "pip", "multiprocessing",
    "asyncio", "signal", "platform", "tempfile", "timeit", "cProfile", "profile", "pdb", "bdb",
    "trace", "zipimport", "nturl2path", "imaplib", "telnetlib", "_posixsubprocess", "pydoc",
    "doctest", "idlelib", "venv", "ensurepip",
}  # fmt: skip
_BUILTIN_MODULES = {"builtins", "__builtin__", "__builtins__"}
_HOSTILE_BUILTINS = {
    "eval", "exec", "execfile", "compile", "open", "file", "input", "__import__", "breakpoint",
    "apply", "help",
}  # fmt: skip


def hostile_names(names: Iterable[Name]) -> str:
    """Return the first five names that only an attack needs, or nothing."""
    hostile = sorted(filter(_is_hostile, names), key=lambda name: (name.module, name.name))
    line = " ".join(", ".join(map(str, hostile[:5])).split())
    return line if len(line) <= 160 else line[:157] + "..."


def _is_hostile(name: Name) -> bool:
    package = name.module.partition(".")[0]
    if package in _BUILTIN_MODULES:
        return name.name.partition(".")[0] in _HOSTILE_BUILTINS
    return package in _HOSTILE_MODULES
