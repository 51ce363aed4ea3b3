"""README.md of an exported model."""

from __future__ import annotations

from apdm.core.versions import package_versions

THREAT_MODEL = (
    "The attacker owns the hardened weights, knows the method, and has clean photos that were never used in "
    "training; hardening raises the cost of learning a protected person and does not make it impossible.",
    "It does not help where the same weights are already public unhardened, on another model, or against "
    "adapters that need no fine-tuning.",
)


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
