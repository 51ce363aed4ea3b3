"""What hardening a model costs, counted on its published architecture without any weights in memory.

Parameters and operations are counts, not estimates: the models are built on PyTorch's meta device and one forward pass
is counted operation by operation. What follows from them is arithmetic, said below with its assumptions, and is no
measurement: activations, the allocator and everything that is not a matrix product or convolution come on top.

    python -m benchmarks.cost [--output cost.json]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from apdm.core.files import write_text
from apdm.jobs.planning.memory import FORWARDS
from benchmarks import architectures

# theta and G with AdamW's two moments, theta' and its gradient with AdamW's two moments, and phi.
COPIES = 9
# The released loop: 8 forward passes, 5 of them backwards too, and 6 encoded pictures.
RELEASED_FORWARDS, RELEASED_ENCODES = 8 + 5 * 2, 6


def count(name: str) -> dict[str, Any]:
    """Figures of one architecture, for one picture of its own resolution."""
    size = architectures.resolution(name)
    with torch.device("meta"):
        denoiser, vae = architectures.denoiser(name), architectures.vae(name)
        forward = _operations(denoiser, **_inputs(name, denoiser, size // 8))
        encode = _operations(vae.encoder, torch.empty(1, 3, size, size))
    parameters = sum(weight.numel() for weight in denoiser.parameters())
    return {
        "resolution": size,
        "parameters": parameters,
        "forward_tflop": forward / 1e12,
        "encode_tflop": encode / 1e12,
        "inner_step_tflop": FORWARDS * forward / 1e12,
        "released_inner_step_tflop": (RELEASED_FORWARDS * forward + RELEASED_ENCODES * encode) / 1e12,
        "copy_gb": 4 * parameters / 1e9,
        "weights_and_moments_gb": COPIES * 4 * parameters / 1e9,
    }


def _inputs(name: str, denoiser: torch.nn.Module, side: int) -> dict[str, Any]:
    if name in architectures.TRANSFORMERS:
        return {
            "hidden_states": torch.empty(1, 16, side, side),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 77 + 256, 4096),
            "pooled_projections": torch.empty(1, 2048),
        }
    width = architectures.UNETS[name]["cross_attention_dim"]
    inputs: dict[str, Any] = {
        "sample": torch.empty(1, 4, side, side),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, 77, width),
    }
    if name == "sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    return inputs


def _operations(module: torch.nn.Module, *args: Any, **kwargs: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*args, **kwargs)
    return int(counter.get_total_flops())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=architectures.NAMES, default=list(architectures.NAMES))
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(argv)
    results = {name: count(name) for name in options.architectures}
    print("model        pixels  parameters  forward   inner step  released's   one copy  weights and moments")
    for name, r in results.items():
        print(
            f"{name:12s} {r['resolution']:5d}  {r['parameters'] / 1e6:7.0f} M  {r['forward_tflop']:5.2f} TFLOP"
            f"  {r['inner_step_tflop']:6.1f}  {r['released_inner_step_tflop']:9.1f}  {r['copy_gb']:7.1f} GB"
            f"  {r['weights_and_moments_gb']:7.0f} GB"
        )
    if options.output:
        write_text(options.output, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
