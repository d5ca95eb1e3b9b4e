"""Errors a user can cause. Each carries one line that says what is wrong and, where possible, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecipeError(Exception):
    """A bad setting, file or state; its text is the one line that the user sees."""

    exit_code = 1


class UsageError(RecipeError):
    """The command line itself is wrong."""

    exit_code = 2


class Interrupted(RecipeError):
    """Stopped with Ctrl-C or by the system; the run can be resumed."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``known``, else raise a :class:`UsageError` with the nearest match."""
    names = sorted(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"unknown {what} {name!r}{hint} (known: {', '.join(names)})")


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, its type if it has no text."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
