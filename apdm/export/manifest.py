"""manifest.json: every shipped file of a run with its hash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from apdm.core.errors import UserError
from apdm.core.files import list_files, sha256_file, write_text
from apdm.core.versions import package_versions
from apdm.export.layout import MANIFEST, SHIPPED


def write_manifest(
    output_dir: str | Path,
    *,
    config_hash: str,
    pairs: str | None = None,
    held_out: str | None = None,
) -> Path:
    """Write manifest.json with the sha256 and the size of each shipped file and the versions of all packages.

    Equal content gives an equal manifest: paths are sorted, and the manifest has no date.

    Args:
        output_dir: the folder of the run.
        config_hash: hash of the resolved configuration.
        pairs: how a hardening run paired protected photos with safe pictures; None after any other job.
        held_out: which of the people's photos a hardening run left out; None if it used all of them.

    Returns:
        The path of the manifest.
    """
    root = Path(output_dir)
    manifest = {
        "schema": 1,
        "config_sha256": config_hash,
        **({} if pairs is None else {"pairs": pairs}),
        **({} if held_out is None else {"held_out": held_out}),
        "package": package_versions(),
        "include": list(SHIPPED),
        "files": [{"path": _name(path, root), **_fingerprint(path)} for path in _shipped_files(root, SHIPPED)],
    }
    write_text(root / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return root / MANIFEST


def renew_entry(output_dir: str | Path, name: str) -> None:
    """Write the new hash and size of one shipped file into the manifest, if it lists the file and can be read.

    Args:
        output_dir: the folder of the run.
        name: the file's path inside `output_dir`.
    """
    root = Path(output_dir)
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        entries = [entry for entry in manifest["files"] if entry["path"] == name]
    except (OSError, ValueError, KeyError, TypeError):
        return  # `verify_manifest` reports it
    for entry in entries:
        entry |= _fingerprint(root / name)
    if entries:
        write_text(root / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _fingerprint(path: Path) -> dict[str, str | int]:
    return {"sha256": sha256_file(path), "size": path.stat().st_size}


def verify_manifest(output_dir: str | Path) -> list[str]:
    """Compare a folder with its manifest.

    Returns:
        One line for each file that is missing, changed or added. The list is empty if all files are as shipped.

    Raises:
        UserError: the manifest is missing or cannot be read.
    """
    root = Path(output_dir)
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
        found = {_name(path, root): path for path in _shipped_files(root, manifest["include"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / MANIFEST} cannot be read ({error}); name the output folder of a run") from None
    missing = [f"{name} is missing" for name in listed if name not in found]
    present = [name for name in listed if name in found]
    changed = [f"{name} has changed" for name in present if sha256_file(found[name]) != listed[name]]
    added = [f"{name} is not in the manifest" for name in found if name not in listed]
    return missing + changed + added


def _shipped_files(root: Path, include: Sequence[str]) -> list[Path]:
    return [path for path in list_files(root) if path.relative_to(root).parts[0] in include]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
