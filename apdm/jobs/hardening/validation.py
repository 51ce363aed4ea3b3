"""Validation during hardening: it draws pictures with fixed seeds, and again after a short probe attack on a copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from apdm.config import HardenConfig
from apdm.core.pictures import grid, save_png, to_pil
from apdm.distributed.trackers import Tracker
from apdm.export.layout import SAMPLES
from apdm.families import Family
from apdm.jobs.hardening.probe import Probe

PROBE_ROWS = 4  # of the sheet of pictures after a probe


def pictures_of_validation(config: HardenConfig) -> int:
    """How many pictures the sheets of one validation hold."""
    rows = len(config.validation.prompts) + PROBE_ROWS * bool(config.validation.probe_steps)
    return rows * config.validation.num_images


class Validator:
    """Draws pictures and runs the probe after some outer steps, and saves `step-<n>.png` and `step-<n>-probe.png`.

    The rows of a sheet are the prompts, in order. Each prompt is drawn with the same noise every time, so sheets of
    different steps can be compared.

    Args:
        family: the model that is hardened. Its weights are not changed.
        probe: the probe attack; None to run no probe.
    """

    def __init__(self, config: HardenConfig, family: Family, probe: Probe | None, tracker: Tracker | None) -> None:
        self.config, self.options = config, config.validation
        self.family, self.probe, self.tracker = family, probe, tracker

    def __call__(self, step: int) -> tuple[dict[str, float], bool]:
        """Validate after outer step `step`.

        Returns:
            The figures of the probe attack, and whether it reached no more likeness than strangers have; no figures and
            False if there is no probe.
        """
        self.family.denoiser.eval()
        images = self._sheet(self.family, f"step-{step:05d}.png", self.options.prompts)
        if self.tracker is not None:  # which gets the prompts' numbers in place of the prompts
            rows = enumerate(images.split(self.options.num_images), start=1)
            shown = {f"validation/prompt {i}": list(map(to_pil, row)) for i, row in rows}
            self.tracker.pictures(shown, step=step, of_people=False)
        if self.probe is None:
            return {}, False
        attacked = self.probe.run(self.family)
        images = self._sheet(attacked, f"step-{step:05d}-probe.png", [self.config.instance_prompt] * PROBE_ROWS)
        if self.tracker is not None:
            self.tracker.pictures({"validation/probe": list(map(to_pil, images))}, step=step, of_people=True)
        return self.probe.measure(images)

    @torch.no_grad()
    def _sheet(self, family: Family, name: str, prompts: Sequence[str]) -> Tensor:
        """Draw pictures for the prompts, save them as one sheet, and return them, `[N, 3, H, W]` in [0, 1]."""
        options, count, seed = self.options, self.options.num_images, self.config.seed
        seeds = [seed + i for i in range(count)] * len(prompts)
        if len(set(prompts)) < len(prompts):  # a repeated prompt gets other noise each time
            seeds = list(range(seed, seed + len(seeds)))
        images = family.sample(
            [prompt for prompt in prompts for _ in range(count)],
            seed=seeds,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            height=self.config.resolution,
            width=self.config.resolution,
            batch_size=self.config.sample_batch_size,
        )
        save_png(grid(images, count), Path(self.config.output_dir) / SAMPLES / name)
        return images
