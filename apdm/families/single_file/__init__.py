"""Single-file checkpoints in the layouts that the common UIs load: reading and writing.

Those of Stable Diffusion 1.x, 2.x, XL and 3 hold the whole pipeline in the authors' layout. The U-Net or the
transformer lies under `model.diffusion_model`, the VAE under `first_stage_model`. The text encoders:

* 1.x: `cond_stage_model.transformer`, with transformers' names; 2.x: `cond_stage_model.model`, with OpenCLIP's names;
* XL: `conditioner.embedders.0.transformer` as in 1.x, `conditioner.embedders.1.model` as in 2.x;
* 3: `text_encoders.clip_l`, `clip_g` and `t5xxl`, all with transformers' names.

Tokenizers and scheduler are not part of such a file. Those of FLUX.1, FLUX.2 and Z-Image hold the transformer alone,
under names without a prefix: text encoders and VAE are files of their own. Each family states its layout in
`Family.single_file_layout`.
"""
