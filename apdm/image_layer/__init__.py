"""The protection of photos: small changes that make models learn less from them.

There are two layers (`apdm/image_layer/layers.py`). The fine-tuning layer uses one of the methods in
`apdm/image_layer/protections/`, one file each. The zero-shot layer (`apdm/image_layer/zero_shot.py`) misleads identity
encoders. Both move the photos with the same loop, `apdm/image_layer/pgd.py`.
"""
