"""manifest.json: every shipped file with its hash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from apdm.core.errors import UserError
from apdm.core.files import list_files, sha256_file, write_text
from apdm.core.versions import package_versions
from apdm.export.layout import MANIFEST, SHIPPED
from apdm.export.metadata import read_metadata


def write_manifest(output_dir: str | Path, *, config_hash: str | None = None, include: Sequence[str] = SHIPPED) -> Path:
    """Write `manifest.json`: each shipped file's sha256 and size, package versions, the configuration's hash.

    Shipped is what `include` names at the top of the folder; logs, checkpoints and the configuration are not.
    Equal content gives an equal manifest: sorted paths, no dates. Without `config_hash`, the exported model's
    own is taken.
    """
    root = Path(output_dir)
    files = _shipped(root, include)
    if config_hash is None:
        headers = [read_metadata(path) for path in files if path.suffix == ".safetensors"]
        known = (header.get("apdm.config_sha256") for header in headers)
        config_hash = next(filter(None, known), None)
    manifest = {
        "schema": 1,
        "config_sha256": config_hash,
        "package": package_versions(),
        "include": list(include),
        "files": [
            {"path": _name(path, root), "sha256": sha256_file(path), "size": path.stat().st_size} for path in files
        ],
    }
    write_text(root / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return root / MANIFEST


def verify_manifest(output_dir: str | Path) -> list[str]:
    """What differs between a folder and its manifest, one line each; empty if all is as it was shipped.

    Raises:
        UserError: the manifest is missing or unreadable.
    """
    root = Path(output_dir)
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
        found = {_name(path, root): path for path in _shipped(root, manifest["include"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / MANIFEST} cannot be read ({error}): give the folder a run wrote") from None
    missing = [f"{name} is missing" for name in listed if name not in found]
    present = [name for name in listed if name in found]
    changed = [f"{name} has changed" for name in present if sha256_file(found[name]) != listed[name]]
    added = [f"{name} is not in the manifest" for name in found if name not in listed]
    return missing + changed + added


def _shipped(root: Path, include: Sequence[str]) -> list[Path]:
    tops = {path: path.relative_to(root).parts[0] for path in list_files(root)}
    return [path for path, top in tops.items() if top in include]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
