"""The options of `apdm verify`."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.config.options import option


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check a folder that a run wrote: its files and hashes, loading, and that it contains no data of a subject."""

    output_dir: str = option(
        help="The folder of the run. On the command line its name alone is enough: apdm verify DIR.", holds="path"
    )
    subjects: str | None = option(
        None,
        "Folder with the subjects' photos, at any depth, also behind links. The names of their folders (their ids) and "
        "bytes of their photos are looked for in the files of the run. By default only prompts are looked for.",
        holds="folder",
    )
    prompts: list[str] = option(
        [], "Texts to look for in the model's files, besides the instance prompts in the folder's config.yaml."
    )
    family: str | None = option(
        None,
        'The model family: a name such as "stable-diffusion-xl", or file.py:MyFamily for a class in a file of your '
        "own. By default the family that handles the pipeline class of the model.",
        holds="spec",
    )
