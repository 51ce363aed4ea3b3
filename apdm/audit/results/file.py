"""Writes and reads results.json. `results_schema` returns its JSON schema, and `SCHEMA` is the number of the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from apdm.audit.results.common import SCHEMA
from apdm.audit.results.models import Results
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.photos import PhotoResults
from apdm.audit.results.schema import WrongShape, from_json, json_schema, to_json
from apdm.core.errors import UserError
from apdm.core.files import write_json

AnyResults = Results | PhotoResults
Shape = TypeVar("Shape")


def write_results(results: AnyResults, path: str | Path) -> None:
    """Write results.json. An existing file is replaced only when the new file is complete."""
    write_json(path, to_json(results))


def read_results(path: str | Path) -> AnyResults:
    """Read what `write_results` wrote: the results of an audit of models or of photos alone.

    Raises:
        UserError: the file cannot be read, it was written by another version with another schema, or it is of attacks
            on one model.
    """
    content = read_content(path)
    if content.get("kind") == "attack":
        raise UserError(f"{path} is of attacks on one model, which were compared with nothing; give that of an audit")
    if content.get("kind") == "photos":
        return in_shape(content, PhotoResults, path)
    return in_shape(content, Results, path)


def read_any_results(path: str | Path) -> AnyResults | AttackResults:
    """Read the results of an audit, or of attacks on one model.

    Raises:
        UserError: the file cannot be read, or it was written by another version with another schema.
    """
    content = read_content(path)
    return in_shape(content, AttackResults, path) if content.get("kind") == "attack" else read_results(path)


def read_content(path: str | Path) -> dict[str, Any]:
    """Read a file of results as JSON of this program's schema. Its shape is not checked yet.

    Raises:
        UserError: the file cannot be read, or it has another schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; give the results.json of an audit") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema is None:
        raise UserError(f"{path} holds no results of an audit; give the results.json of one")
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}, this program reads {SCHEMA}: audit again with this version")
    return cast(dict[str, Any], content)


def in_shape(content: Mapping[str, Any], kind: type[Shape], path: str | Path) -> Shape:
    """Return what `read_content` read as results of a kind. Raises UserError if they have another shape."""
    try:
        return from_json(kind, content)
    except WrongShape as problem:
        raise UserError(f"{path} was not written by this version: {problem}; audit again with this version") from None


def read_model_results(path: str | Path) -> Results:
    """Read the results of an audit of models. Raises UserError as `read_results`, and if it was one of photos alone."""
    results = read_results(path)
    if isinstance(results, PhotoResults):
        raise UserError(f"{path} is the audit of photos alone; give the results.json of an audit of models")
    return results


def results_schema(kind: type[AnyResults] = Results) -> dict[str, Any]:
    """The JSON schema of results.json, of an audit of models or of photos alone."""
    return json_schema(kind, title=f"apdm results.json, schema {SCHEMA}")
