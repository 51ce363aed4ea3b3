"""Gradient checkpointing whose passes CUDA graphs can record.

A checkpointed block keeps only its inputs, and is computed a second time in the backward pass. By default PyTorch saves
the state of the device's random numbers before the block, and restores it for the second time. Both need the CPU in the
middle of a pass, which a graph cannot hold. Blocks that draw no random numbers do not need it, and no denoiser draws
any but in dropout.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint


def passes_of_training(*, recomputed: bool = False) -> int:
    """Forward passes of a training step on one picture: a backward pass counts as two, and recomputing as one more."""
    return 4 if recomputed else 3


def enable_gradient_checkpointing(denoiser: Any) -> None:
    """Recompute the blocks of a diffusers model in its backward passes."""
    denoiser.enable_gradient_checkpointing(recomputed)


def recomputed(block: Any, *inputs: Any) -> Any:
    """Call a block that keeps only its inputs for the backward pass."""
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=draws_random_numbers(block))


def draws_random_numbers(block: Any) -> bool:
    """Whether a block may draw random numbers. If it is not a module, it is assumed that it does."""
    if not isinstance(block, nn.Module):
        return True
    return any(isinstance(module, _DropoutNd) and module.p > 0 for module in block.modules())


def keeps_random_state(network: nn.Module) -> bool:
    """Whether a pass of the network saves the state of the random numbers in its middle."""
    checkpointed = [module for module in network.modules() if getattr(module, "gradient_checkpointing", False)]
    ours = all(getattr(module, "_gradient_checkpointing_func", None) is recomputed for module in checkpointed)
    return bool(checkpointed) and (not ours or draws_random_numbers(network))
