"""The model card of an exported model: its README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from apdm.core.terminal import count
from apdm.core.versions import package_versions

if TYPE_CHECKING:
    from apdm.export.loading import Loading  # imports diffusers, which a report does without

THREAT_MODEL = (
    "The attacker owns the hardened weights, knows the method, and has clean photos that were never used in "
    "training; hardening raises the cost of learning a protected person and does not make it impossible.",
    "It does not help where the same weights are already public unhardened, on another model, or against "
    "adapters that need no fine-tuning.",
)


def model_card(
    facts: Mapping[str, str], ways: Sequence[Loading], *, moved: float | None = None, base_model: str | None = None
) -> str:
    """The text of the model card: what was hardened, how, against which attacker, and how to load it.

    Args:
        facts: the entries that `export_model` writes into the weights' headers.
        ways: the ways in which the model is loaded.
        moved: share of the denoiser's weights that differ from the base's; None if it is not known.
        base_model: the base's name on the Hub; None if it is not from there.

    Returns:
        Markdown with the metadata block of the Hugging Face Hub. Equal arguments and equal versions of the installed
        packages give equal text.
    """
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
    lines = [
        "# Hardened text-to-image pipeline",
        "",
        "The denoiser of this diffusers pipeline was trained so that fine-tuning it on photos of certain people, who",
        "asked for this, yields less likeness of them. All other parts are those of the base model. The people are not",
        "named here or anywhere in the files.",
        "",
        f"* Base model, sha256 over its weight files: `{facts['apdm.base_sha256']}`",
        f"* Method: {facts['apdm.method']}, {count(int(facts['apdm.steps']), 'step')}",
        f"* Configuration, sha256: `{facts['apdm.config_sha256']}`",
        f"* Versions: {versions}",
    ]
    if "apdm.pairs" in facts:
        lines.append(f"* Safe partners of the protected photos: {facts['apdm.pairs']}")
    if "apdm.held_out" in facts:
        lines.append(f"* Held out from the hardening, to measure likeness: {facts['apdm.held_out']}")
    if moved is not None:
        lines.append(f"* Weights of the denoiser that differ from the base: {moved:.1%}")
    lines += ["", "## Threat model", "", " ".join(THREAT_MODEL), "", "## Use", ""]
    for way in ways:
        lines += [f"To load {way.what}:", "", "```python", way.code(), "```", "", *([way.note, ""] if way.note else [])]
    data = ModelCardData(
        base_model=base_model,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["apdm", "personalization-protection"],
    )
    text = "\n".join(lines)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
