"""The model card of an exported model: its README.md."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import ModelCard, ModelCardData

from apdm.core.versions import package_versions

THREAT_MODEL = (
    "The attacker owns the hardened weights, knows the method, and has clean photos that were never used in "
    "training; hardening raises the cost of learning a protected person and does not make it impossible.",
    "It does not help where the same weights are already public unhardened, on another model, or against "
    "adapters that need no fine-tuning.",
)


def model_card(facts: Mapping[str, str], *, kind: str, name: str, variant: str | None, single_file: bool) -> str:
    """The text of the model card: what was hardened, how, against which attacker, and how to load it.

    Args:
        facts: the entries that `export_model` writes into the weights' headers.
        kind: the diffusers pipeline class.
        name: the name of the pipeline folder.
        variant: "fp16" or "bf16" if the folder also has weights in that type.
        single_file: whether there is a single-file checkpoint beside the folder.

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
            "# or from the single file in the original layout, with tokenizer and scheduler of this folder",
            f'pipeline = {kind}.from_single_file("{name}.safetensors", config="{name}")',
        ]
    data = ModelCardData(
        library_name="diffusers", pipeline_tag="text-to-image", tags=["apdm", "personalization-protection"]
    )
    text = "\n".join([*lines, "```", ""])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
