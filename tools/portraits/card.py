"""Writes the model card of the bundled models from the figures in the JSON files beside their weights."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

ENCODERS = ("portrait-a", "portrait-b")


def write_card(weights: Path) -> None:
    """Write README.md into the folder `weights`, from the JSON files in it."""
    pipeline = json.loads((weights / "pipeline.json").read_text())
    encoders = {name: json.loads((weights / f"{name}.json").read_text()) for name in ENCODERS}
    face = json.loads((weights / "portrait-face.json").read_text())
    sections = [*_introduction(), *_pipeline(pipeline), *_adapter(pipeline), *_encoders(encoders), *_face(face)]
    (weights / "README.md").write_text("\n".join(sections) + "\n")


def _introduction() -> list[str]:
    return [
        "# The bundled models of the miniature world",
        "",
        *_paragraph(
            "This folder holds a Stable Diffusion pipeline, a FaceID adapter, two face encoders and an attribute",
            "reader. They were trained on people and objects that this package draws itself. All figures on this page",
            "were measured on drawn people whom no model was trained on. They say nothing about other models.",
        ),
        *_paragraph(
            "`python -m tools.portraits.train`, run in the repository, trains the models again. Its stage `figures`",
            "measures them and writes this page.",
        ),
    ]


def _pipeline(figures: dict[str, Any]) -> list[str]:
    rows = [
        [step, *(f"{by[name]['mean']:.2f} / {by[name]['match_rate']:.2f}" for name in ENCODERS)]
        for step, by in sorted(figures["dreambooth"].items(), key=lambda item: int(item[0]))
    ]
    return [
        "## Pipeline",
        "",
        *_paragraph(
            "The pipeline draws pictures of 64 x 64 pixels from latents of 4 x 16 x 16 numbers, and predicts noise",
            "(epsilon). No training caption contains the identifiers `sks` and `t@t`.",
        ),
        f'- Face rate of the prompt "a photo of a person": {figures["face_rate"]:.3f}.',
        "- Fréchet distance between its pictures and drawings, 512 of each, in the attribute reader's features: "
        f"{figures['frechet_to_renderer']:.2f}.",
        f"- The same distance between two sets of drawings: {figures['frechet_renderer_to_itself']:.2f}.",
        f"- PSNR of the autoencoder on unseen people: {figures['autoencoder_psnr']:.1f} dB.",
        "",
        *_paragraph(
            "The table shows how often a picture has the attribute that its prompt names, as the attribute reader sees",
            "it.",
        ),
        *_table(["attribute", "share"], [[k, f"{v:.2f}"] for k, v in sorted(figures["caption_accuracy"].items())]),
        "",
        *_paragraph(
            f"DreamBooth was trained on {figures['dreambooth_people']} unseen people with 4 photos each: AdamW with",
            f"learning rate {figures['dreambooth_learning_rate']:g}, batches of {figures['dreambooth_batch']} photos",
            f'and as many class pictures, prompt "{figures["dreambooth_prompt"]}". The table shows the mean cosine to',
            "held-out photos and the match rate, by face encoder.",
        ),
        *_table(["steps", *ENCODERS], rows),
        "",
    ]


def _adapter(figures: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{entry['mean']:.2f}", f"{entry['match_rate']:.2f}", f"{entry['face_rate']:.2f}"]
        for name, entry in sorted(figures["adapter"].items())
    ]
    return [
        "## FaceID adapter",
        "",
        *_paragraph(
            "The adapter has diffusers' format of IP-Adapter FaceID and takes the embedding of `portrait-a`.",
            "`portrait-b` was not used in its training. The table shows the likeness of its pictures to held-out",
            f"photos, for {figures['dreambooth_people']} unseen people with one photo and 16 pictures each.",
        ),
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
    head = ["encoder", "TAR, photo to photo", "TAR, photo to mean", "threshold (to mean)", "same", "different"]
    return [
        "## Face encoders",
        "",
        *_paragraph(
            "`portrait-a` is a residual network, trained with the ArcFace loss. `portrait-b` is a transformer over",
            "patches, trained with a contrastive loss, on other people. The figures are for 1000 unseen people. TAR is",
            "the true accept rate at a false match rate of 1e-3. The last two columns are cosines between one photo",
            "and the mean of other photos: of the same person, and of different people.",
        ),
        *_table(head, rows),
        "",
    ]


def _face(figures: dict[str, Any]) -> list[str]:
    rows = [[k.removeprefix("false_accept_"), f"{v:.3f}"] for k, v in sorted(figures.items()) if k.startswith("false_")]
    accuracy = ", ".join(f"{name} {value:.2f}" for name, value in sorted(figures["accuracy"].items()))
    return [
        "## Face score",
        "",
        *_paragraph(
            f"`portrait-face` accepts {figures['face_rate']:.3f} of unseen portraits. The table shows which share it",
            "accepts of pictures without a face.",
        ),
        *_table(["pictures", "accepted"], rows),
        "",
        *_paragraph(f"It reads the attributes of unseen portraits with this accuracy: {accuracy}.")[:-1],
    ]


def _paragraph(*parts: str) -> list[str]:
    """The lines of a paragraph, at most 120 characters each, and an empty line."""
    return [*textwrap.wrap(" ".join(parts), 120, break_long_words=False, break_on_hyphens=False), ""]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
