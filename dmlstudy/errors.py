"""The exceptions that users are meant to read, and the nearest valid name for a typo."""

from collections.abc import Iterable
from difflib import get_close_matches


class StudyError(Exception):
    """A mistake that the user can mend; the message says what, where and how in one sentence."""


class DivergedError(StudyError):
    """A training whose loss is not finite."""


def unknown(kind: str, name: str, known: Iterable[str]) -> StudyError:
    """The error for a name that is not in `known`, with the nearest valid one.

    >>> str(unknown("method", "multi_simlarity", ["multi_similarity", "soft_triple"]))
    "Unknown method 'multi_simlarity': did you mean 'multi_similarity'?"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(names)}."
    return StudyError(f"Unknown {kind} '{name}': {hint}")
