"""What leaves the house: pipeline folder, single file, metadata, model card and manifest.

None of it carries a subject's name, prompt, photo or embedding; `scan_for_leaks` looks at the written bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from apdm import __version__
from apdm.errors import UserError
from apdm.files import (
    list_files,
    model_hash,
    require_disk,
    sha256_file,
    write_beside,
    write_text,
)
from apdm.single_file import check_single_file, single_file_weights

if TYPE_CHECKING:
    from apdm.families import Family

__all__ = [
    "THREAT_MODEL",
    "check_single_file",
    "export_model",
    "export_size",
    "model_hash",
    "package_versions",
    "read_metadata",
    "scan_for_leaks",
    "verify_manifest",
    "write_manifest",
    "write_metadata",
]

PACKAGES = (
    *("accelerate", "datasets", "diffusers", "numpy", "peft"),
    *("pillow", "safetensors", "scipy", "torch", "transformers"),
)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
DENOISERS = ("unet", "transformer")  # their folder in a pipeline
MANIFEST = "manifest.json"
SHIPPED = ("model", "model.safetensors", "images", "perturbation.json", "results.json", "report.html")

THREAT_MODEL = (
    "The attacker owns the hardened weights, knows the method, and has clean photos that were never used in "
    "training; hardening raises the cost of learning a protected person and does not make it impossible.",
    "It does not help where the same weights are already public unhardened, on another model, or against "
    "adapters that need no fine-tuning.",
)


def export_model(
    family: Family,
    directory: str | Path,
    *,
    base_path: str | Path,
    config_hash: str,
    method: str,
    steps: int,
    save_variant: str | None = None,
    single_file: bool = False,
) -> Path:
    """Write the pipeline folder `directory` whole or not at all, and on request `<directory>.safetensors`.

    Args:
        family: its `pipeline` is saved as it is, with the hardened denoiser in it.
        base_path: the folder (or single file) hardening started from; its weights' hash is recorded. A Hub id
            is no folder and has none: give the folder that was loaded.
        config_hash: of the resolved configuration. method: what hardened it, e.g. "apdm". steps: outer steps.
        save_variant: "fp16" or "bf16" also writes the weights in that precision, under that variant; the
            single file then has it alone.
    Raises:
        UserError: the disk is too small, or the pipeline does not fit a single file.
    """
    target = Path(directory)
    if single_file:
        check_single_file(family.pipeline)
    require_disk(target, export_size(family, save_variant=save_variant, single_file=single_file))
    facts = {
        "apdm.version": __version__,
        "apdm.method": method,
        "apdm.steps": str(steps),
        "apdm.config_sha256": config_hash,
        "apdm.base_sha256": model_hash(base_path) if Path(base_path).exists() else "unknown",
    }
    with write_beside(target, folder=True) as partial:
        family.save(partial)
        if save_variant:
            _add_variant(family, partial, save_variant)
        for path in list_files(partial):
            if path.suffix == ".safetensors" and path.parent.name in DENOISERS:
                write_metadata(path, facts)
        kind = type(family.pipeline).__name__
        card = model_card(facts, kind=kind, name=target.name, variant=save_variant, single_file=single_file)
        write_text(partial / "README.md", card)
    if single_file:
        path = target.with_name(f"{target.name}.safetensors")
        _write_single_file(family, path, facts, DTYPES.get(save_variant or ""))
    return target


def export_size(family: Family, *, save_variant: str | None = None, single_file: bool = False) -> int:
    """Bytes that `export_model` needs at its peak, an upper bound: a new header takes its file twice."""
    dtype, pipeline = DTYPES.get(save_variant or ""), cast(Any, family.pipeline)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = [weight for module in modules for weight in module.state_dict().values()]
    full = sum(weight.numel() * weight.element_size() for weight in weights)
    variant = sum(weight.numel() * dtype.itemsize for weight in weights) if dtype else 0
    return 2 * (full + variant) + (2 * (variant or full) if single_file else 0) + 50_000_000


def write_metadata(path: Path, facts: dict[str, str]) -> None:
    """Add `facts` to the header of a safetensors file; what is there (`format: pt`) and all weights stay."""
    with open(path, "rb") as source, write_beside(path) as partial, open(partial, "wb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        known = header.pop("__metadata__", {})
        header = {"__metadata__": dict(sorted({**known, **facts}.items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants the weights aligned to 8 bytes
        target.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, target, 1 << 24)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file, empty if it has none."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(header.get("__metadata__", {}))


def package_versions() -> dict[str, str]:
    """Versions of this package, of Python and of every installed library a result depends on."""
    versions = {"apdm": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def model_card(facts: dict[str, str], *, kind: str, name: str, variant: str | None, single_file: bool) -> str:
    """README.md of an exported model: what was hardened, with what, against whom, and how to load it."""
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [apdm, personalization-protection]",
        "---",
        "",
        "# Hardened text-to-image pipeline",
        "",
        "The denoiser of this diffusers pipeline was trained so that fine-tuning it on photos of certain",
        "people, who asked for it, yields less likeness of them. All other parts are the base model's. The",
        "people are not named here or anywhere in the files.",
        "",
        f"* Base model, sha256 over its weight files: `{facts['apdm.base_sha256']}`",
        f"* Method: {facts['apdm.method']}, {facts['apdm.steps']} steps",
        f"* Configuration, sha256: `{facts['apdm.config_sha256']}`",
        f"* Versions: {versions}",
        "",
        "## Threat model",
        "",
        " ".join(THREAT_MODEL),
        "",
        "## Use",
        "",
        "```python",
        f"from diffusers import {kind}",
        "",
        f'pipeline = {kind}.from_pretrained("{name}")',
    ]
    if variant:
        lines[-1] += f'  # half precision: variant="{variant}"'
    if single_file:
        lines += [
            "# or from the one file in the original layout, with tokenizer and scheduler of this folder",
            f'pipeline = {kind}.from_single_file("{name}.safetensors", config="{name}")',
        ]
    return "\n".join([*lines, "```", ""])


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


def scan_for_leaks(directory: str | Path, needles: Iterable[bytes | str]) -> list[tuple[str, bytes | str]]:
    """Each (file, needle) where `needle` stands in the raw bytes or the path of a file below `directory`.

    `directory` may also be one file. Text is looked for as UTF-8 and as JSON writes it. Nothing is
    decompressed. Needles of fewer than six bytes turn up in large weight files by chance.

    Raises:
        FileNotFoundError: there is nothing to scan. ValueError: a needle is empty.
    """
    root, found = Path(directory), []
    if not root.exists():
        raise FileNotFoundError(root)
    wanted = [(needle, _spellings(needle)) for needle in needles]
    for path in [root] if root.is_file() else list_files(root):
        name = root.name if path == root else _name(path, root)
        with open(path, "rb") as file:
            # an empty file cannot be mapped
            content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
            for needle, spellings in wanted:
                if any(content.find(text) >= 0 or text in name.encode() for text in spellings):
                    found.append((name, needle))
    return found


def _spellings(needle: bytes | str) -> set[bytes]:
    if not needle:
        raise ValueError("an empty needle is in every file")
    if isinstance(needle, bytes):
        return {needle}
    return {needle.encode(), json.dumps(needle)[1:-1].encode()}


def _add_variant(family: Family, folder: Path, variant: str) -> None:
    """Save once more in half precision and take the weights of that into `folder`, beside the full ones."""
    half = folder.with_name(f"{folder.name}.{variant}")
    family.save(half, variant=variant)
    for path in list_files(half):
        if ".safetensors" in path.name:  # the weights, and the index of sharded ones
            os.replace(path, folder / path.relative_to(half))


def _write_single_file(family: Family, path: Path, facts: dict[str, str], dtype: torch.dtype | None) -> None:
    def ready(weight: Tensor) -> Tensor:
        return weight.detach().to("cpu", dtype if weight.is_floating_point() else None).contiguous()

    weights = {name: ready(weight) for name, weight in single_file_weights(family.pipeline, family.dtypes).items()}
    with write_beside(path) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
        write_metadata(partial, facts)


def _shipped(root: Path, include: Sequence[str]) -> list[Path]:
    tops = {path: path.relative_to(root).parts[0] for path in list_files(root)}
    return [path for path, top in tops.items() if top in include]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
