"""Validation during hardening: it draws pictures with fixed seeds, and again after a short probe attack on a copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from apdm.config import ValidationConfig
from apdm.core.pictures import grid, save_png, to_pil
from apdm.distributed.trackers import Tracker
from apdm.families import Family
from apdm.jobs.probe import Probe

REQUIRED_PROBES = 2  # how many probes in a row must show no more likeness than strangers before training may stop
PROBE_ROWS = 4  # of the sheet of pictures after a probe


class Validator:
    """Draws pictures and runs the probe after some outer steps, and saves `step-<n>.png` and `step-<n>-probe.png`.

    The rows of a sheet are the prompts, in order. Each prompt is drawn with the same noise every time, so sheets of
    different steps can be compared.

    Attributes:
        quiet_probes: how many probes in a row have shown no more likeness than strangers have.
    """

    def __init__(
        self,
        options: ValidationConfig,
        family: Family,
        probe: Probe | None,
        directory: Path,
        *,
        instance_prompt: str,
        seed: int,
        resolution: int,
        batch_size: int,
        tracker: Tracker | None = None,
    ) -> None:
        """Prepare the validation.

        Args:
            options: which pictures are drawn, and whether training may stop early.
            family: the model that is hardened. Its weights are not changed.
            probe: the probe attack; None to run no probe.
            directory: the folder for the sheets.
            instance_prompt: the prompt that the probe's pictures are drawn with.
            seed: seed of the pictures' noise.
            resolution: side of the pictures in pixels.
            batch_size: how many pictures are drawn at once.
            tracker: the tracker that gets the pictures; None for no tracker.
        """
        self.options, self.family, self.probe, self.directory = options, family, probe, directory
        self.instance_prompt, self.seed = instance_prompt, seed
        self.resolution, self.batch_size, self.tracker = resolution, batch_size, tracker
        self.quiet_probes = 0

    @property
    def enough(self) -> bool:
        """Whether training may stop: the user asked for that, and enough probes in a row were quiet."""
        return self.options.stop_when_protected and self.quiet_probes >= REQUIRED_PROBES

    def __call__(self, step: int) -> dict[str, float]:
        """Validate after outer step `step`.

        Returns:
            `ProbeResult.figures` of the probe attack; empty if there is no probe.
        """
        self.family.denoiser.eval()
        images = self._sheet(self.family, f"step-{step:05d}.png", self.options.prompts)
        if self.tracker is not None:  # which gets the prompts' numbers in place of the prompts
            rows = enumerate(images.split(self.options.num_images), start=1)
            shown = {f"validation/prompt {i}": list(map(to_pil, row)) for i, row in rows}
            self.tracker.pictures(shown, step=step, of_people=False)
        if self.probe is None:
            return {}
        attacked = self.probe.run(self.family)
        images = self._sheet(attacked, f"step-{step:05d}-probe.png", [self.instance_prompt] * PROBE_ROWS)
        if self.tracker is not None:
            self.tracker.pictures({"validation/probe": list(map(to_pil, images))}, step=step, of_people=True)
        result = self.probe.measure(images)
        self.quiet_probes = self.quiet_probes + 1 if result.like_strangers else 0
        return result.figures

    @torch.no_grad()
    def _sheet(self, family: Family, name: str, prompts: Sequence[str]) -> Tensor:
        """Draw pictures for the prompts, save them as one sheet, and return them, `[N, 3, H, W]` in [0, 1]."""
        options, count = self.options, self.options.num_images
        seeds = [self.seed + i for i in range(count)] * len(prompts)
        if len(set(prompts)) < len(prompts):  # a repeated prompt gets other noise each time
            seeds = list(range(self.seed, self.seed + len(seeds)))
        images = family.sample(
            [prompt for prompt in prompts for _ in range(count)],
            seed=seeds,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            height=self.resolution,
            width=self.resolution,
            batch_size=self.batch_size,
        )
        save_png(grid(images, count), self.directory / name)
        return images
