"""The options about the Hugging Face Hub, which `apdm push` and `apdm harden` share."""

from __future__ import annotations

from typing import Any

from apdm.config.options import option


def hub_model_id_option() -> Any:
    """The option `hub_model_id`."""
    return option(
        None,
        "The repository on the Hugging Face Hub, NAME or OWNER/NAME. By default it is called like the output folder. "
        "The token comes from HF_TOKEN, or from hf auth login.",
    )


def hub_public_option() -> Any:
    """The option `hub_public`."""
    return option(
        False,
        "Make a new repository public. By default it is private. A repository that is there stays what it is, and one "
        "that is public already is refused without this option.",
    )


def hub_overwrite_option() -> Any:
    """The option `hub_overwrite`."""
    return option(
        False,
        "Push to a repository with content that this program did not push. Files of the same names are replaced, and "
        "other weights are removed, in a new commit; the history keeps them.",
    )
