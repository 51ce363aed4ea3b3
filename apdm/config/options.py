"""Options as fields of nested dataclasses: how they are declared, and how a value is fitted to its option.

A command declares its options once, with `option()`. `filling.py` makes configurations from what was given.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from apdm.config.paths import expand_path, expand_spec
from apdm.config.types import NOTHING, Form, advice, convert, scalar, wanted, without_none
from apdm.core.errors import UserError

# The limits that an option may declare: a test of (value, bound), and the words for messages and help.
LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "more than"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
    "multiple_of": (lambda value, unit: value % unit == 0, "a multiple of"),
}
# The help of an option that several commands have.
DRY_RUN = (
    "Load and check everything that the run needs, print the plan, and end: with 0, or with 2 and a list of all that "
    "is missing or wrong. Nothing is written and nothing is drawn."
)
# The headings of the short help, in their order. An option is common if it is declared to stand under one of them.
HEADINGS = (
    *("model", "photos", "what is made", "how long, and how strongly", "simulated attackers", "attacks", "how long"),
    *("faces and judges", "memory", "output", "page"),
)
# In messages, the places where a value was given.
COMMAND_LINE = "on the command line"
IN_CALL = "in the call"
FORMS: Mapping[str, Form] = {COMMAND_LINE: "words", IN_CALL: "python"}


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    holds: Literal["text", "path", "folder", "file", "spec"] = "text",
    formerly: Mapping[str, str] | None = None,
    common: str | Mapping[str, str] | None = None,
    **limits: float,
) -> Any:
    """Declare one field of an options dataclass.

    Args:
        default: the value if none is given. Of a list, every configuration gets its own copy. An option without a
            default is required.
        help: what the option does, what a higher value costs, and where the default comes from.
        holds: what a text means. In paths, also in those of a "spec" such as "mine.py:Attack:steps=5", `~` and `$NAME`
            are replaced by the home folder and the environment variable. A "folder" or a "file" must exist. "text"
            stays as it is.
        formerly: {name of an option that this one replaces: what to write now}, for the message about the old name.
        common: one of `HEADINGS` for an option that many people set: the short help, `--help`, shows it under this
            heading. {command: heading} if only some of the commands that have the option shall show it. The first
            sentence of `help` is what is shown, up to the last comma that fits on the line.
        limits: any of `LIMITS`, such as `at_least=0`. For a list, they apply to each item.

    Returns:
        A dataclass field.
    """
    if unknown := limits.keys() - LIMITS.keys():
        raise TypeError(f"no such limit: {sorted(unknown)}")
    headings = {common} if isinstance(common, str) else set((common or {}).values())
    if unknown_headings := headings - set(HEADINGS):
        raise TypeError(f"no such heading: {sorted(unknown_headings)}")
    metadata = {"help": help, "limits": limits, "holds": holds, "formerly": formerly or {}, "common": common}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def broken_limit(field: dataclasses.Field[Any], value: Any) -> str | None:
    """Check a value against the limits of its option.

    Returns:
        The limit that the value, or a number in the list, does not keep, such as "at least 1"; None if there is none.
    """
    numbers = value if isinstance(value, list) else [value]
    for limit, bound in field.metadata.get("limits", {}).items():
        holds, words = LIMITS[limit]
        if any(number is not None and not holds(number, bound) for number in numbers):
            return f"{words} {bound}"
    return None


def read_value(kind: Any, text: str) -> Any:
    """Convert a text to the type `kind`, by the rules of the command line.

    Raises:
        ValueError: the text does not fit. The message says what fits, such as "a whole number".
    """
    if without_none(kind) is not kind and text.lower() in NOTHING:
        return None
    try:
        return convert(kind, scalar(without_none(kind), text))
    except ValueError:
        raise ValueError(wanted(kind)) from None


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        path: the dotted name, such as "l2p.inner_steps".
        kind: the type, such as `int` or `str | None`.
        owner: the dataclass that declares the option.
        field: the field that `option()` made.
    """

    path: str
    kind: Any
    owner: type
    field: dataclasses.Field[Any]

    @property
    def group(self) -> str:
        """The dotted name of the option's group; empty for an option outside of all groups."""
        return self.path.rpartition(".")[0]

    @property
    def help(self) -> str:
        """The help text."""
        return str(self.field.metadata["help"])

    def heading(self, command: str) -> str | None:
        """The heading under which the short help of a command shows the option; None if the option is not common."""
        common: str | Mapping[str, str] | None = self.field.metadata.get("common")
        return common if isinstance(common, str) or common is None else common.get(command)

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING

    @property
    def wanted(self) -> str:
        """The type and the limits in words, such as "a whole number, at least 1"."""
        limits = [f"{LIMITS[limit][1]} {_short(bound)}" for limit, bound in self.field.metadata["limits"].items()]
        return ", ".join([wanted(self.kind), *limits])

    @property
    def default(self) -> str:
        """The default as JSON."""
        factory = self.field.default_factory
        return json.dumps(self.field.default if factory is dataclasses.MISSING else factory())

    def parse(self, texts: list[str]) -> Any:
        """Convert the words after `--key` on the command line to the value that YAML would give.

        Raises:
            UserError: there are too many words or too few, or a list is written as in YAML.
        """
        kind = without_none(self.kind)
        if get_origin(kind) is list:
            # As one item, a whole YAML list would be a strange prompt or path, and nothing would say so.
            if bracketed := [text for text in texts if text.startswith("[") and text.endswith("]")]:
                problem = "write the items themselves, separated by spaces, without brackets and commas"
                raise UserError(f"--{self.path} is given as {bracketed[0]}; {problem}")
            return [scalar(get_args(kind)[0], text) for text in texts]
        if kind is bool and not texts:
            return True
        if len(texts) != 1:
            problem = "needs a value" if not texts else "takes one value; put quotes around one with spaces"
            raise UserError(f"--{self.path} {problem}")
        return scalar(kind, texts[0])

    def fit(self, value: Any, where: str) -> Any:
        """Convert a value to this option's type.

        Args:
            value: the value, as YAML gives it.
            where: the place where the value was given, for messages.

        Raises:
            UserError: the value has another type or is out of range.
        """
        if without_none(self.kind) is not self.kind and isinstance(value, str) and value.lower() in NOTHING:
            value = None
        if value == "" and self.field.default == "":  # the default itself may be written down
            return value
        try:
            fitting = convert(self.kind, value)
        except (ValueError, OverflowError):
            form = FORMS.get(where, "yaml")
            raise self._misfit(value, where, wanted(self.kind) + advice(self.kind, value, form=form)) from None
        value = self._expand(fitting, where)
        if (limit := broken_limit(self.field, value)) is not None:
            raise self._misfit(value, where, f"to be {limit}")
        return value

    def _expand(self, value: Any, where: str) -> Any:
        """Expand the paths in a value, if this option holds paths."""
        holds = self.field.metadata["holds"]
        if holds == "text" or value is None:
            return value
        expand = expand_spec if holds == "spec" else expand_path
        try:
            return [expand(item) for item in value] if isinstance(value, list) else expand(value)
        except ValueError as problem:
            raise UserError(f"{self.path} {where} is {json.dumps(value)}; {problem}") from None

    def _misfit(self, value: Any, where: str, wanted: str) -> UserError:
        # The Python type is not shown for the command line, where every value is text.
        kind = "" if where == COMMAND_LINE or value is None else f" ({type(value).__name__})"
        shown = json.dumps(value) if isinstance(value, str | bool | NoneType) else " ".join(reprlib.repr(value).split())
        return UserError(f"{self.path} {where} is {shown}{kind}; it needs {wanted}")


def options_by_path(cls: type) -> dict[str, Option]:
    """Return {dotted name: option} of an options dataclass: its own options first, then the options of each group."""
    return {found.path: found for found in _options(cls)}


@cache
def _options(cls: type, prefix: str = "") -> tuple[Option, ...]:
    """All options of a class. They are kept, because Python takes milliseconds to read the types."""
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    groups = {field.name: hints[field.name] for field in fields if dataclasses.is_dataclass(hints[field.name])}
    own = [Option(prefix + field.name, hints[field.name], cls, field) for field in fields if field.name not in groups]
    return (*own, *(option for name, group in groups.items() for option in _options(group, f"{prefix}{name}.")))


def _short(bound: float) -> str:
    """Return a limit as text: a whole number in full, any other number with six digits."""
    return str(bound) if isinstance(bound, int) else f"{bound:.6g}"
