"""The options of `apdm push`."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.config.groups.hub import hub_model_id_option, hub_overwrite_option, hub_public_option
from apdm.config.options import option


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Push a hardened model to the Hugging Face Hub: the files of model/ that the manifest names, and its card."""

    output_dir: str = option(
        help="The folder of the run. On the command line its name alone is enough: apdm push DIR. It is first checked "
        "as by apdm verify.",
        holds="path",
    )
    hub_model_id: str | None = hub_model_id_option()
    hub_public: bool = hub_public_option()
    hub_overwrite: bool = hub_overwrite_option()
    base_model: str | None = option(
        None,
        "The base model's name on the Hub, for the card, which also takes its licence from there. By default the name "
        "that the run took the base from, if that was the Hub.",
    )
    subjects: str | None = option(
        None,
        "Folder with the subjects' photos. Their ids and photos are looked for in the files before these are pushed. "
        "By default only prompts are looked for.",
        holds="folder",
    )
    family: str | None = option(
        None,
        "The model family: a name, or file.py:MyFamily. By default the family that handles the pipeline class of the "
        "model.",
        holds="spec",
    )
    dry_run: bool = option(
        False,
        "Check the run, list what would be pushed, and end. Nothing is sent. The repository is looked at if there is a "
        "token.",
    )
