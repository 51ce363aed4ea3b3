"""Model families: everything that the package must know about one architecture of diffusion models.

A family wraps a diffusers pipeline. It encodes prompts and images, draws timesteps, adds noise, names the training
target, calls the denoiser, samples images and writes the pipeline. It also states the facts that other packages ask
for: the names of the denoiser's blocks, the layers that LoRA adapts, the attention layers, the single-file layout.
A family holds no code of any method, and a method never tests which family it has.

Three conventions are the same in every family, so that the code outside needs no special cases:

* The embedding of a prompt is one tensor `[B, L, D]` that only the family can read. A family whose denoiser takes more
  than token embeddings (a pooled vector, a mask) appends it as further rows, and `predict` takes these rows off again.
* Further conditions, such as the picture's size in Stable Diffusion XL, are derived inside `predict`.
* Timesteps are whole numbers from 0 (least noise) to num_train_timesteps - 1 (most noise). A family whose denoiser
  takes a noise level instead looks the level up.

One file holds one family. `docs/adding-a-family.md` shows how to add one.
"""

import apdm.core.quiet  # noqa: F401 (before diffusers and transformers are imported)
from apdm.families.base import Family
from apdm.families.flux import Flux
from apdm.families.flux2 import Flux2
from apdm.families.load import FAMILIES, load_family
from apdm.families.posterior import Posterior
from apdm.families.sd import StableDiffusion
from apdm.families.sd3 import StableDiffusion3
from apdm.families.sdxl import StableDiffusionXL
from apdm.families.zimage import ZImage

__all__ = [
    "FAMILIES",
    "Family",
    "Flux",
    "Flux2",
    "Posterior",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "ZImage",
    "load_family",
]
