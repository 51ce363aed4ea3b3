"""The bundled models' card, written from the figures beside the weights and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = """# The miniature world's models

A Stable Diffusion pipeline, a FaceID adapter, two identity encoders and an attribute reader, trained by this package
on people and objects that it draws itself. Everything below was measured on this world, on people that no training saw,
and says nothing about other models. `python -m tools.portraits.train`
remakes each file; its stage `figures` measures again and writes this page.
"""


def write_card(weights: Path) -> None:
    """Write `weights`/README.md from the JSON files in `weights`."""
    pipeline = json.loads((weights / "pipeline.json").read_text())
    encoders = {name: json.loads((weights / f"{name}.json").read_text()) for name in ("portrait-a", "portrait-b")}
    face = json.loads((weights / "portrait-face.json").read_text())
    text = "\n".join([WORDS, *_pipeline(pipeline), *_adapter(pipeline), *_encoders(encoders), *_face(face)])
    (weights / "README.md").write_text(text + "\n")


def _pipeline(figures: dict[str, Any]) -> list[str]:
    lines = [
        "## Pipeline",
        "",
        "64 px, epsilon prediction, 4 x 16 x 16 latents; `sks` and `t@t` are ordinary tokens that no caption contains.",
        "",
        f'- Face rate of "a photo of a person": {figures["face_rate"]:.3f}.',
        f"- FID to the renderer, 512 pictures, portrait-face features: {figures['fid_to_renderer']:.2f} (the renderer "
        f"against itself: {figures['fid_renderer_to_itself']:.2f}).",
        f"- The autoencoder's PSNR on unseen people: {figures['autoencoder_psnr']:.1f} dB.",
        "",
        "Captions followed, as the attribute reader sees it:",
        "",
        *_table(["attribute", "share"], [[k, f"{v:.2f}"] for k, v in sorted(figures["caption_accuracy"].items())]),
        "",
        f"DreamBooth on {figures['dreambooth_people']} unseen people, 4 photos each, AdamW "
        f"{figures['dreambooth_learning_rate']:g}, batch {figures['dreambooth_batch']} and as many class pictures, "
        f'"{figures["dreambooth_prompt"]}": '
        "mean cosine to held-out photos / match rate.",
        "",
    ]
    rows = [
        [step, *(f"{by[e]['mean']:.2f} / {by[e]['match_rate']:.2f}" for e in ("portrait-a", "portrait-b"))]
        for step, by in sorted(figures["dreambooth"].items(), key=lambda item: int(item[0]))
    ]
    return [*lines, *_table(["steps", "portrait-a", "portrait-b"], rows), ""]


def _adapter(figures: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{entry['mean']:.2f}", f"{entry['match_rate']:.2f}", f"{entry['face_rate']:.2f}"]
        for name, entry in sorted(figures["adapter"].items())
    ]
    return [
        "## FaceID adapter",
        "",
        f"diffusers' IP-Adapter FaceID format, on `portrait-a`'s embedding. {figures['dreambooth_people']} unseen "
        "people, one clean photo each, 16 pictures, cosine to held-out photos; `portrait-b` was used nowhere in its "
        "training.",
        "",
        *_table(["encoder", "cosine", "match rate", "face rate"], rows),
        "",
    ]


def _encoders(encoders: dict[str, dict[str, float]]) -> list[str]:
    rows = [
        [
            name,
            f"{f['tar']:.3f}",
            f"{f['tar_to_mean']:.3f}",
            f"{f['threshold']:.3f}",
            f"{f['genuine_mean']:.2f}",
            f"{f['impostor_mean']:.2f} +- {f['impostor_std']:.2f}",
        ]
        for name, f in encoders.items()
    ]
    head = [
        "encoder",
        "TAR, photo to photo",
        "TAR, photo to mean",
        "threshold (to mean)",
        "same",
        "different",
    ]
    return [
        "## Identity encoders",
        "",
        "1000 unseen people, false match rate 1e-3. `portrait-a`: residual network, ArcFace. `portrait-b`: "
        "transformer over patches, contrastive. Trained on different people.",
        "",
        *_table(head, rows),
        "",
    ]


def _face(figures: dict[str, Any]) -> list[str]:
    rows = [[k.removeprefix("false_accept_"), f"{v:.3f}"] for k, v in sorted(figures.items()) if k.startswith("false_")]
    accuracy = ", ".join(f"{name} {value:.2f}" for name, value in sorted(figures["accuracy"].items()))
    return [
        "## Face score",
        "",
        f"`portrait-face` accepts {figures['face_rate']:.3f} of unseen portraits. False accepts:",
        "",
        *_table(["pictures", "accepted"], rows),
        "",
        f"Its attribute accuracy on unseen portraits: {accuracy}.",
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
