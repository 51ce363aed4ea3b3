"""The options of diffusers' script train_dreambooth.py, and what the same thing is called in `apdm harden`.

A name that `apdm` does not have is looked up here, and the message says what to use instead. The page of the documents
is made from the same table.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Instead:
    """What to use in place of an option that `apdm harden` does not have.

    Attributes:
        why: the reason, or more about what to use; the end of a sentence.
        use: options of `apdm harden`, each perhaps with a value: "l2p.optimizer adamw8bit".
    """

    why: str
    use: tuple[str, ...] = ()


OF_THE_MODEL = Instead("prompts are encoded as the model's own pipeline encodes them")
TOKEN = Instead("set the environment variable HF_TOKEN, or run `hf auth login`; others may see a command line")
ONLY_TEXT = Instead("only models that draw pictures from text are hardened")
SAME = None  # the option has the same name

# Every option of the script in its order.
OPTIONS: dict[str, Instead | None] = {
    "pretrained_model_name_or_path": SAME,
    "revision": SAME,
    "variant": SAME,
    "tokenizer_name": OF_THE_MODEL,
    "instance_data_dir": SAME,
    "class_data_dir": SAME,
    "instance_prompt": SAME,
    "class_prompt": SAME,
    "with_prior_preservation": Instead("it is on unless this weight is 0", ("l2p.prior_loss_weight",)),
    "prior_loss_weight": Instead(
        "the first is the simulated attacker's, the second the defender's",
        ("l2p.prior_loss_weight", "preservation.weight"),
    ),
    "num_class_images": SAME,
    "output_dir": SAME,
    "seed": SAME,
    "resolution": SAME,
    "center_crop": Instead("photos are always cropped at the centre"),
    "train_text_encoder": Instead("hardening changes only the denoiser"),
    "train_batch_size": SAME,
    "sample_batch_size": SAME,
    "num_train_epochs": Instead("the length of a run is given in steps", ("max_train_steps",)),
    "max_train_steps": SAME,
    "checkpointing_steps": SAME,
    "checkpoints_total_limit": SAME,
    "resume_from_checkpoint": SAME,
    "gradient_accumulation_steps": SAME,
    "gradient_checkpointing": SAME,
    "learning_rate": SAME,
    "scale_lr": Instead("the rate is used as it is given, however large the batch is", ("learning_rate",)),
    "lr_scheduler": SAME,
    "lr_warmup_steps": SAME,
    "lr_num_cycles": SAME,
    "lr_power": SAME,
    "use_8bit_adam": Instead("the preset for 24 GB sets it too", ("l2p.optimizer adamw8bit",)),
    "dataloader_num_workers": Instead("every process reads the photos itself"),
    "adam_beta1": SAME,
    "adam_beta2": SAME,
    "adam_weight_decay": SAME,
    "adam_epsilon": SAME,
    "max_grad_norm": SAME,
    "push_to_hub": SAME,
    "hub_token": TOKEN,
    "hub_model_id": SAME,
    "logging_dir": SAME,
    "allow_tf32": Instead("TF32 stays as PyTorch has it; bfloat16 is faster still", ("mixed_precision bf16",)),
    "report_to": SAME,
    "validation_prompt": Instead("a list of prompts", ("validation.prompts",)),
    "num_validation_images": Instead("the number for each prompt", ("validation.num_images",)),
    "validation_steps": Instead("counted in outer steps; 0 never validates", ("validation.steps",)),
    "mixed_precision": SAME,
    "prior_generation_precision": Instead("class pictures have no option for their precision"),
    "local_rank": Instead("the launcher gives it: run `accelerate launch train_apdm.py` or `torchrun train_apdm.py`"),
    "enable_xformers_memory_efficient_attention": Instead("PyTorch's own memory-efficient attention is used"),
    "set_grads_to_none": Instead("this is always done"),
    "offset_noise": Instead("hardening adds no offset to the noise"),
    "snr_gamma": Instead(
        "the loss that protects compares errors at one noise level, where a weight would only change its beta; attacks "
        "have it: `apdm attack MODEL --attack dreambooth:snr_gamma=5`"
    ),
    "pre_compute_text_embeddings": Instead(
        "it keeps text encoders in main memory; prompts are encoded before training in any case", ("memory.offload",)
    ),
    "tokenizer_max_length": OF_THE_MODEL,
    "text_encoder_use_attention_mask": OF_THE_MODEL,
    "skip_save_text_encoder": Instead("a hardened model is always written as a whole"),
    "validation_images": ONLY_TEXT,
    "class_labels_conditioning": ONLY_TEXT,
    "validation_scheduler": Instead("pictures are drawn with the model's own scheduler"),
}


def advice(name: str, known: Collection[str]) -> str | None:
    """Return what to do about an option that only diffusers' script has: the end of a message.

    Args:
        known: the options of the command.

    Returns:
        None if the script has no such option, or if the command has none of those to use instead.
    """
    instead = OPTIONS.get(name)
    if instead is None or any(used.split()[0] not in known for used in instead.use):
        return None
    if not instead.use:
        return f"leave it out: {instead.why}"
    return f"use {' and '.join(instead.use)} ({instead.why})"


def page() -> str:
    """Return the table as one page of Markdown."""
    lines = [
        "# Options of diffusers' script",
        "",
        "<!-- Written by `python -m apdm.config.reference docs/reference/diffusers-options.md`; edit",
        "     apdm/config/diffusers_names.py instead. -->",
        "",
        "What the options of diffusers' `train_dreambooth.py` are called in `apdm harden`. Where the name is not the",
        "same, the error message says what this table says. [All options](options.md) are on a page of their own.",
        "",
        "| diffusers | `apdm harden` | |",
        "| --- | --- | --- |",
    ]
    for name, instead in OPTIONS.items():
        if instead is SAME:
            ours, why = "the same name", ""
        else:
            ours, why = ", ".join(f"`{used}`" for used in instead.use) or "none", instead.why
        lines.append(f"| `{name}` | {ours} | {why} |")
    return "\n".join(lines) + "\n"
