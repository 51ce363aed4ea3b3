"""From people's photos and prompts to the latents and embeddings that the hardening works with."""

from __future__ import annotations

from torch import Tensor

from apdm.attacks import Purifier
from apdm.attacks.registry import make_purifier
from apdm.config import HardenConfig
from apdm.core.pictures import to_unit
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images
from apdm.jobs.hardening.files import Photos
from apdm.protection.subject_data import SubjectData


def encode_subjects(
    config: HardenConfig, base: Family, photos: Photos, class_images: Posterior
) -> dict[str, list[SubjectData]]:
    """Encode photos and prompts to latents and embeddings, once for the whole run.

    Args:
        config: the options. `config.variety` lists further prompts, and changes to the photos.
        photos: the photos of the people, perhaps with captions.
        class_images: latents of the class pictures.

    Returns:
        {subject id: variants of the subject's latents and prompts}, one variant for each pair of a change and a prompt.
        The first variant has unchanged photos and the instance prompt. Captions, one for each photo, count as a prompt.
    """
    prompts = [config.instance_prompt, *config.variety.instance_prompts, config.class_prompt]
    *instance_prompts, class_prompt = base.encode_prompts(prompts).float().split(1)
    held = config.preservation.anchor_prompts
    anchor_prompts = base.encode_prompts(["", *held]).float() if held else None
    changes = [None, *map(make_purifier, config.variety.photos)]

    def encode(images: Tensor, change: Purifier | None) -> Posterior:
        if change is not None:
            images = change(to_unit(images), base, config.seed) * 2 - 1
        return encode_images(base, images, batch_size=config.sample_batch_size)

    subjects: dict[str, list[SubjectData]] = {}
    for subject, images in photos.instance.items():
        subjects[subject], prompts_of_subject = [], list(instance_prompts)
        if captions := photos.captions.get(subject):
            prompts_of_subject.append(base.encode_prompts(captions).float())
        for change in changes:
            instance = encode(images, change)
            safe = encode(photos.safe[subject], change) if subject in photos.safe else None
            subjects[subject] += [
                SubjectData(
                    instance=instance,
                    prior=class_images,
                    instance_prompt=prompt,
                    class_prompt=class_prompt,
                    draw_timesteps=base.draw_timesteps,
                    positive=safe,
                    anchor_prompts=anchor_prompts,
                )
                for prompt in prompts_of_subject
            ]
    return subjects
