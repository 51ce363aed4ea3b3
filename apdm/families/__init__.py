"""What differs between model families, and nothing else.

A family turns prompts into embeddings and images into latents, draws timesteps and adds noise, names the training
target, calls the denoiser, draws images and writes the pipeline. It knows no method, and methods know no family:

* Prompt embeddings are one opaque tensor `[B, L, D]`. Families with pooled embeddings (SDXL, SD3, FLUX) put them in as
  further rows, and `predict` takes them off again.
* Further conditions, such as SDXL's picture size, follow from the latents' shape inside `predict`.
* Timesteps are whole numbers 0 .. num_train_timesteps - 1, from least to most noise, also where a model is told a
  noise level.
"""

from apdm.families.base import Family
from apdm.families.flux import Flux
from apdm.families.load import load_family
from apdm.families.posterior import Posterior
from apdm.families.sd import StableDiffusion
from apdm.families.sd3 import StableDiffusion3
from apdm.families.sdxl import StableDiffusionXL

__all__ = ["Family", "Flux", "Posterior", "StableDiffusion", "StableDiffusion3", "StableDiffusionXL", "load_family"]
