"""Ids in place of names of people, which must not stand in outputs."""

from __future__ import annotations

import hashlib
import re
import unicodedata

DIGITS = 10
OPAQUE = re.compile(
    r"[A-Za-z]{0,2}[_-]?\d{1,8}|[0-9a-f]{8,64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    rf"|p[0-9a-f]{{{DIGITS}}}"  # one of ours
)


def plain(value: str) -> str:
    """Return a value in the form in which values are compared."""
    return unicodedata.normalize("NFC", value.strip())


def opaque_id(value: str) -> str:
    """Return the id of the subject that a dataset calls `value`.

    Values that look like numbers or hashes are kept, such as "7", "n000050" or "id_12". Others may be names of people,
    which must not stand in outputs. In their place stand the first digits of a hash, which are the same in every run.
    An id stays as it is.
    """
    value = plain(value)
    if OPAQUE.fullmatch(value):
        return value
    return "p" + hashlib.sha256(value.encode()).hexdigest()[:DIGITS]
