"""Pooled prompt vectors in the rows behind the token embeddings, so that one tensor holds all of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def append_pooled(embeds: Tensor, pooled: Tensor) -> Tensor:
    """Append pooled vectors `[B, P]` to token embeddings `[B, L, D]`, in further rows that are padded with zeros.

    Returns:
        `[B, L + ceil(P / D), D]`, which `split_pooled` takes apart again.
    """
    width = embeds.shape[2]
    rows = pad(pooled, (0, -pooled.shape[1] % width)).unflatten(1, (-1, width))
    return torch.cat([embeds, rows.to(embeds.dtype)], dim=1)


def split_pooled(embeds: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Undo `append_pooled`: the token embeddings `[B, L, D]` and the pooled vectors `[B, P]`; P is `width`."""
    rows = -(-width // embeds.shape[2])
    return embeds[:, :-rows], embeds[:, -rows:].flatten(1)[:, :width]
