"""Every error that a user of kdistill can meet, in one tree.

Messages have one form: ``<where>: expected <what>, got <what>; <what to do>``.
"""

from kdistill.escape import message as _readable


class KDistillError(Exception):
    """Base of all errors raised on purpose by kdistill.

    Names and values of files in its message cannot act on a terminal.
    """

    def __init__(self, message: str = "", *more: object):
        super().__init__(_readable(str(message)), *more)


class ConfigError(KDistillError, ValueError):
    """Unknown name or key, or an impossible combination of options."""


class DataError(KDistillError, ValueError):
    """A data set or artefact that cannot be used as it is."""


class ShapeError(KDistillError, ValueError):
    """Shape, dtype or device of a tensor argument."""


class MissingExtraError(KDistillError, ImportError):
    """An optional package is absent; the message names the extra to install."""


class BackendUnavailableError(KDistillError, RuntimeError):
    """The backend asked for cannot run; ``refusals`` maps each backend tried to its reason."""

    def __init__(self, message: str, refusals: dict[str, str] | None = None):
        super().__init__(message)
        self.refusals = refusals or {}


class NotDifferentiableError(KDistillError, RuntimeError):
    """An op was differentiated more often than it declares."""


class NonFiniteError(KDistillError, ArithmeticError):
    """Loss or gradient is not finite; the message says why, and where the last good state is."""


class NativeError(KDistillError, RuntimeError):
    """A failed check or a CUDA status from the compiled modules."""


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ``"did you mean 'x'? known: a, b, c"`` for an unknown ``word``."""
    import difflib

    by_lower = {name.lower(): name for name in known}
    # one letter of two may be wrong, not half of a long word
    cutoff = 0.5 if len(word) < 4 else 0.6
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=cutoff)
    hint = f"did you mean '{by_lower[close[0]]}'? " if close else ""
    return f"{hint}known: {', '.join(sorted(known))}"
