"""What the parts of an inner step cost, and what each change to the released loop should save by that.

Parts are timed in turns in one process, so that a busy machine slows all of them; medians are reported. The prediction
of a change is arithmetic on the parts; `l2p_speed` measures what all changes together do.

    python -m benchmarks.l2p_parts [--architecture sd15 | --pretrained_model_name_or_path FOLDER] [--output parts.json]
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from apdm.core.adamw import make_adamw, reset_optimizer
from apdm.core.files import write_text
from benchmarks.l2p_speed import PROMPTS, Options, load, parser_of, seconds


def parts(options: Options) -> dict[str, Callable[[], object]]:
    """Name to action of every part; the model's weights change as they go, which costs nothing."""
    family = load(options)
    family.pipeline.to(options.device)
    model, reference = family.denoiser.requires_grad_(True), copy.deepcopy(family.denoiser).requires_grad_(False)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    size = options.resolution or family.denoiser.config.sample_size * family.vae_scale
    image = torch.rand(1, 3, size, size, device=options.device) * 2 - 1
    with torch.no_grad():
        embeds, latents = family.encode_prompts(PROMPTS[:1]).float(), family.posterior(image).mean
    optimizer, start = make_adamw(model.parameters()), [p.detach().clone() for p in model.parameters()]
    total = [torch.zeros_like(p) for p in start]

    def predict(network: Any, count: int) -> Tensor:
        many = latents.expand(count, -1, -1, -1)
        timesteps = torch.full((count,), 500, device=many.device)
        return family.predict(network, many, timesteps, embeds.expand(count, -1, -1))

    def train(count: int, network: Any = model, *, half: bool = False) -> None:
        with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=half):
            prediction = predict(network, count)
        torch.autograd.grad(prediction.float().square().mean(), list(network.parameters()))

    def step() -> None:
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()

    @torch.no_grad()
    def copy_in_place() -> None:
        torch._foreach_copy_(list(model.parameters()), start)
        reset_optimizer(optimizer)

    def copy_anew() -> None:
        make_adamw(copy.deepcopy(model).parameters())

    return {
        "encode a picture": torch.no_grad()(lambda: family.posterior(image)),
        "encode a prompt": torch.no_grad()(lambda: family.encode_prompts(PROMPTS[:1])),
        "forward, without gradients": torch.no_grad()(lambda: predict(reference, 1)),
        "two forwards in one batch, without gradients": torch.no_grad()(lambda: predict(reference, 2)),
        "forward with a graph": lambda: predict(model, 1),
        "forward and backward": lambda: train(1),
        "two forwards and backwards in one batch": lambda: train(2),
        "three forwards and backwards in one batch": lambda: train(3),
        "the same, weights in channels_last": lambda: train(3, last),
        "the same, autocast to bf16": lambda: train(3, half=True),
        "AdamW's step": step,
        "add a gradient, tensor by tensor": lambda: [a.add(b) for a, b in zip(total, start, strict=True)],
        "add a gradient, foreach": lambda: torch._foreach_add_(total, start),
        "copy the model, new AdamW": copy_anew,
        "copy in place, moments to zero": copy_in_place,
    }


def predictions(time: Mapping[str, float], inner_steps: int) -> dict[str, float]:
    """Seconds of one inner step of the released loop, and after each change in turn."""
    released = (
        6 * time["encode a picture"]
        + 4 * time["encode a prompt"]
        + 5 * time["forward and backward"]
        + 2 * time["forward, without gradients"]
        + time["forward with a graph"]
        + time["AdamW's step"]
        + time["add a gradient, tensor by tensor"]
        + time["copy the model, new AdamW"] / inner_steps
    )
    savings = {
        "latents and prompts cached": 6 * time["encode a picture"] + 4 * time["encode a prompt"],
        "no forward pass for nothing": time["forward with a graph"],
        "phi's two samples in one batch": 2 * time["forward, without gradients"]
        - time["two forwards in one batch, without gradients"],
        "theta's 2 + 3 samples in two batches": 5 * time["forward and backward"]
        - time["two forwards and backwards in one batch"]
        - time["three forwards and backwards in one batch"],
        "gradients added with foreach": time["add a gradient, tensor by tensor"] - time["add a gradient, foreach"],
        "theta' copied in place": (time["copy the model, new AdamW"] - time["copy in place, moments to zero"])
        / inner_steps,
    }
    result = {"the released loop": released}
    for name, saved in savings.items():
        released -= saved
        result[name] = released
    return result


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    values = vars(parser.parse_args(argv))
    output, repeats = values.pop("output"), values.pop("repeats")
    options = Options(**values)
    actions = parts(options)
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            taken = seconds(action, options.device)
            if turn:
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    predicted = predictions(medians, options.inner_steps)
    for name, value in medians.items():
        print(f"{name:46s} {1e3 * value:9.2f} ms")
    print("\npredicted inner step, with one change after another")
    first = predicted["the released loop"]
    for name, value in predicted.items():
        print(f"{name:46s} {1e3 * value:9.2f} ms {first / value:6.2f} x")
    if output:
        content = {"parts": medians, "predicted": predicted, "threads": torch.get_num_threads()}
        write_text(output, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
