"""The model card for the Hugging Face Hub: the card of the run, with base, licence, results and the published name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml
from huggingface_hub import ModelCard

from apdm.core.errors import UserError
from apdm.export.layout import MODEL

LIMITS = (
    "This model is no guarantee. An attacker who owns these weights can still fine-tune them on a protected person; "
    "hardening makes that cost more steps, as far as it works at all. The table says what was measured.",
    "Nobody measured what the table does not name: other attacks, other people, longer attacks.",
)
NOT_AUDITED = "Nobody attacked this model: its run had no audit. So nothing is claimed about protection."


def hub_card(
    text: str,
    *,
    name: str,
    base_model: str | None,
    licence: Mapping[str, str],
    table: Sequence[tuple[str, str, str]],
    notes: str,
) -> str:
    """Return the card for a repository.

    Args:
        text: the card that the run wrote, README.md of its pipeline folder.
        name: the repository, OWNER/NAME.
        base_model: the base's name on the Hub; None keeps what the card says.
        licence: entries of the Hub's metadata about the licence; empty if it is not known.
        table: the results: what was measured, on the base and on the hardened model; empty without an audit.
        notes: sentences below the table.

    Raises:
        UserError: the text is no card.
    """
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
        data = card.data.to_dict()
    except (ValueError, yaml.YAMLError):
        data = {}
    if not data:  # huggingface_hub takes a text without a block for a card
        raise UserError("README.md of the model has no metadata block; export the model again")
    base = base_model or data.get("base_model")
    if base is not None:
        data |= {"base_model": base, "base_model_relation": "finetune"}
    data |= licence
    for key, value in data.items():
        setattr(card.data, key, value)
    about, _, use = card.text.partition("## Threat model")
    lines = [about.rstrip(), ""]
    if base is not None:
        called = f", {licence['license']}," if "license" in licence else ""
        lines += [f"The base is [{base}](https://huggingface.co/{base}). Its licence{called} binds this model too.", ""]
    lines += ["## Results", ""]
    lines += [*_table(table), "", notes, ""] if table else [NOT_AUDITED, ""]
    lines += ["## Limits", "", " ".join(LIMITS), "", "## Threat model"]
    card.text = "\n".join(lines) + _for_the_hub(use, name)
    return f"---\n{card.data.to_yaml()}\n---\n\n{card.text.strip()}\n"


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    return ["| | base | hardened |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]


def _for_the_hub(use: str, name: str) -> str:
    """The end of a card with the repository's name in the code, and without the single file, which is not pushed."""
    first, *ways = re.split(r"^(?=To load )", use, flags=re.MULTILINE)
    kept = [way for way in ways if not way.startswith("To load the single file")]
    return first + "".join(way.replace(f'from_pretrained("{MODEL}"', f'from_pretrained("{name}"') for way in kept)
