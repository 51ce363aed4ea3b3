"""As much of a JSON schema validator as the schema of results.json needs."""

from __future__ import annotations

from typing import Any

KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
    "object": dict,
    "array": list,
}
KNOWN = {"$schema", "title", "$defs", "$ref", "type", "enum", "anyOf", "items", "properties", "required"}


def violations(value: Any, schema: dict[str, Any], definitions: dict[str, Any], where: str = "$") -> list[str]:
    """What in `value` the schema does not allow, one text each."""
    unknown = schema.keys() - KNOWN - {"additionalProperties"}
    assert not unknown, f"this validator does not know {unknown}"
    if "$ref" in schema:
        return violations(value, definitions[schema["$ref"].removeprefix("#/$defs/")], definitions, where)
    if "anyOf" in schema:
        options = [violations(value, option, definitions, where) for option in schema["anyOf"]]
        return [] if [] in options else options[0]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r} is not in {schema['enum']}"]
    if "type" not in schema:
        return []
    kind = KINDS[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return [f"{where}: {value!r} is no {schema['type']}"]
    if isinstance(value, list):
        items = schema["items"]
        return [bad for i, entry in enumerate(value) for bad in violations(entry, items, definitions, f"{where}[{i}]")]
    if not isinstance(value, dict):
        return []
    found = [f"{where}: {name} is missing" for name in schema.get("required", []) if name not in value]
    for name, entry in value.items():
        inner = schema.get("properties", {}).get(name, schema["additionalProperties"])
        if inner is False:
            found.append(f"{where}: {name} is not allowed")
        else:
            found += violations(entry, inner, definitions, f"{where}.{name}")
    return found
