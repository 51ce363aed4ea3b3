"""The options of `apdm env`."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.config.options import option


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Print versions, devices and what is missing for which job, or look at the models that a file names."""

    models: str | None = option(
        None,
        "YAML file of models, one `name: path` in each line: a pipeline folder, a single file, an InsightFace pack, a "
        "face recogniser or detector, a FaceID or InstantID adapter, a folder of DINO, CLIP or Inception, or a name on "
        "the Hugging Face Hub that is in the cache. Each is loaded once, and what it can be used for is said. Nothing "
        "is downloaded. By default no model is looked at.",
        holds="path",
    )
    allow_pickle: bool = option(
        False, "Also load .bin and .pt weights. Loading a pickle can run any code that its author put in it."
    )
