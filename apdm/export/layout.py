"""The names of all files and folders that a run writes into its output folder. Each name is stated here once."""

from __future__ import annotations

from apdm.config import photo_run

# Shipped files and folders. The manifest lists them with their hashes.
MODEL = "model"  # the pipeline folder
SINGLE_FILE = "model.safetensors"
PERTURBATION = "perturbation.json"  # how visible the changes to the photos are
RESULTS = "results.json"  # what the audit found
REPORT = "report.html"
ATTACK = "attack.json"  # what `apdm attack` found
LIKENESS = "likeness.svg"  # the curve of that
ATTACKED_MODELS = "attacked_models"
TABLE, TABLE_PAGE = "table.json", "table.html"  # what `apdm reproduce` found
IMAGES = photo_run.IMAGES  # protected photos
SHIPPED = (MODEL, SINGLE_FILE, IMAGES, PERTURBATION, RESULTS, REPORT)

MANIFEST = "manifest.json"
CONFIG = photo_run.CONFIG  # the resolved options

# Working files. They let an interrupted run continue and are never shipped.
CELLS = "cells"  # finished attacks of the audit
SEARCH_CELLS = "search_cells"  # finished trials of an attacker's search
PHOTO_CELLS = "photo_cells"  # finished attacks on protected photos
CLASS_IMAGES = "class_images"  # class pictures that the base model drew for hardening
PARTNERS = "partners"  # pictures that the base model drew, one for each protected photo
ATTACKER_CLASS_IMAGES = "class_images_attacker"  # class pictures for the audit's attackers
PICTURES = "pictures"  # pictures of the audit
PHOTO_SOURCES = "photo_sources.json"  # hashes of what the protected photos were made from
SAMPLES = "samples"  # pictures drawn during training
