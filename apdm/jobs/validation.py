"""Looks at the model while it is being hardened: fixed-seed pictures, and the same after a short probe attack."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.config import HardenConfig
from apdm.core.pictures import grid, save_png
from apdm.families import Family
from apdm.jobs.judged import JudgedPeople
from apdm.protection.attackers import People

PATIENCE = 2


class Validator:
    """Called after some outer steps; leaves `samples/step-<n>.png` and `samples/step-<n>-probe.png` behind.

    The rows of a sheet are the prompts, in order, each with the same noise every time, so sheets compare. The probe
    is a short DreamBooth run on the first subject; its likeness is measured on the instance prompt, and `enough` says
    whether it was at the strangers' level `PATIENCE` times running, where the user asked to stop then.
    """

    def __init__(
        self,
        config: HardenConfig,
        family: Family,
        people: People,
        judged: JudgedPeople | None,
        directory: Path,
    ) -> None:
        self.config, self.family, self.judged, self.directory = config, family, judged, directory
        self.subject, variants = sorted(people.items())[0]
        self.data = variants[0]
        self.quiet_probes = 0

    @property
    def enough(self) -> bool:
        return self.config.validation.stop_when_protected and self.quiet_probes >= PATIENCE

    def __call__(self, step: int) -> dict[str, float]:
        """Draw, probe, and return likeness and face rate after the probe, by encoder. The model is only read."""
        options = self.config.validation
        denoiser = self.family.denoiser
        denoiser.eval()
        self._sheet(self.family, f"step-{step:05d}.png", options.prompts)
        if not options.probe_steps or self.judged is None:
            return {}
        audit = self.config.audit
        probe = DreamBooth(
            instance_prompt=self.config.instance_prompt,
            class_prompt=self.config.class_prompt,
            learning_rate=audit.learning_rate,
            max_train_steps=options.probe_steps,
            train_batch_size=audit.train_batch_size,
            prior_loss_weight=audit.prior_loss_weight,
            seed=self.config.seed,
        )
        attacked = probe.run(self.family, Material(self.data.instance, self.data.prior)).model
        images = self._sheet(attacked, f"step-{step:05d}-probe.png", [self.config.instance_prompt] * 4)
        figures, quiet = self.judged.probe(images, self.subject)
        self.quiet_probes = self.quiet_probes + 1 if quiet else 0
        return figures

    @torch.no_grad()
    def _sheet(self, family: Family, name: str, prompts: list[str]) -> Tensor:
        options, count = self.config.validation, self.config.validation.num_images
        seeds = [self.config.seed + i for i in range(count)] * len(prompts)
        if len(set(prompts)) < len(prompts):  # the same prompt several times over: more noise, not the same pictures
            seeds = list(range(self.config.seed, self.config.seed + len(seeds)))
        images = family.sample(
            [prompt for prompt in prompts for _ in range(count)],
            seed=seeds,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            height=self.config.resolution,
            width=self.config.resolution,
            batch_size=self.config.sample_batch_size,
        )
        save_png(grid(images, count), self.directory / name)
        return images
