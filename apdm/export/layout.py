"""The names of all files and folders that a run writes into its output folder, each said once."""

from __future__ import annotations

# Shipped: listed in the manifest with their hashes.
MODEL = "model"  # the pipeline folder
SINGLE_FILE = "model.safetensors"
IMAGES = "images"  # protected photos
PERTURBATION = "perturbation.json"  # how visible the changes to the photos are
RESULTS = "results.json"
REPORT = "report.html"
SHIPPED = (MODEL, SINGLE_FILE, IMAGES, PERTURBATION, RESULTS, REPORT)

MANIFEST = "manifest.json"
CONFIG = "config.yaml"  # the resolved options

# Work: kept so that a run can go on, never shipped.
CELLS = "cells"  # finished attacks of the audit
PHOTO_CELLS = "photo_cells"  # finished attacks on photos
CLASS_IMAGES = "class_images"
ATTACKER_CLASS_IMAGES = "class_images_attacker"
PICTURES = "pictures"  # the audit's
SAMPLES = "samples"  # drawn while training
