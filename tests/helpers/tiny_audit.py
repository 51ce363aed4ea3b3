"""Options, judges and photos for audits of tiny pipelines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apdm.audit.inputs.people import Person
from apdm.config import AuditConfig

CONFIG = AuditConfig(
    learning_rate=1e-3,
    max_train_steps=4,
    eval_steps=[1],
    train_batch_size=2,
    prior_loss_weight=0.5,
    num_class_images=4,
    num_images=2,
    num_inference_steps=2,
    guidance_scale=2.0,
    seeds=2,
)


class ConvJudge(nn.Module):
    """A small convolutional network: an encoder, a face score and an extractor, whichever is asked for."""

    def __init__(self, name: str, threshold: float, seed: int) -> None:
        super().__init__()
        self.name, self.threshold, self.is_inception, self.detector = name, threshold, False, None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Conv2d(8, 6, 3, 2), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).tanh()

    def embed(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self(images), dim=1)

    def score(self, images: Tensor) -> Tensor:
        return self(images).mean(dim=1)


def photos(count: int, seed: int) -> Tensor:
    """Photos in 8 bits, as an audit keeps them."""
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def person(name: str, seed: int) -> Person:
    return Person(name, photos(3, seed), photos(2, seed + 100))


def rows_of(results: dict[str, Any], model: str) -> list[dict[str, Any]]:
    return [row for row in results["attacks"] if row["model"] == model]
