"""The options of `apdm verify`."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.config.options import option


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check a folder that a run wrote: files, hashes, loading, and that nothing of a subject is inside."""

    output_dir: str = option(help="The folder: apdm verify DIR is apdm verify --output_dir DIR.")
    subjects: str | None = option(
        None, "Folder with the subjects' photos, at any depth: their ids and photos are looked for in the files."
    )
    prompts: list[str] = option([], "Texts to look for beside the instance_prompt of the folder's config.yaml.")
