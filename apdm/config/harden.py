"""The options of `apdm harden`, under diffusers' names where diffusers has one.

Defaults are APDM's release settings (NeurIPS 2025, arXiv 2511.01307) unless an option's help says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from apdm.config.audit import AuditConfig
from apdm.config.job import JobConfig
from apdm.config.options import option
from apdm.config.presets import PRESETS, MemoryConfig
from apdm.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class L2PConfig:
    """Learning to Protect: the simulated attacker inside every outer step (Algorithm 1)."""

    inner_steps: int = option(
        20,
        "N_per: attacker steps on theta' per outer step. The paper takes 20, its code 10 on SD 2.1.",
        at_least=1,
    )
    learning_rate: float = option(5e-6, "Of the attacker's AdamW, fresh in every outer step.", above=0)
    prior_loss_weight: float = option(
        1.0, "Weight of L_ppl in the attacker's loss L_per (Eq. 3-5); 0 leaves it out.", at_least=0
    )
    max_grad_norm: float = option(
        0.0,
        "Clips the attacker's gradients; 0: off, as released. A real DreamBooth run clips at 1.",
        at_least=0,
    )
    accumulate: Literal["sum", "mean"] = option(
        "sum", "How the N_per protective gradients become theta's. AdamW makes the two nearly alike."
    )
    evaluate: Literal["after", "before"] = option(
        "after", "L_protect at theta' after its step (Algorithm 1, release) or before it (Eq. 18-19)."
    )
    leak: bool = option(
        False,
        "Adds the attacker's own gradient to the protective one, as the release does where it omits a "
        "zero_grad. It undoes the protection: for reproduction studies only.",
    )
    attackers: Literal["synchronous", "independent"] = option(
        "synchronous",
        "With several processes: one attacker on the whole batch, as one process has it, or one per process on its "
        "share, which is more diverse and sends less (DDP only).",
    )
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = option(
        "adamw",
        "The attacker's: AdamW as in the paper, AdamW with moments in 8 bits (needs bitsandbytes), or Adafactor, which "
        "has no first moment and hardly any second. In copies of the weights: 2, 0.5, 0.",
    )
    lora_share: float = option(
        0.0,
        "Share of outer steps, chosen by the seed, whose attacker trains a LoRA in place of all weights; with a pool, "
        "share of its attackers. 0: none, as in the paper; 1: all of them, which saves three copies of the weights, "
        "or two beside ema_decay.",
        at_least=0,
        at_most=1,
    )
    lora_rank: int = option(4, "Rank of that LoRA; peft's and diffusers' 4.", at_least=1)
    lora_target: Literal["attention", "linear", "all"] = option(
        "attention",
        "Its layers: attention's projections (a transformer's of the prompt too), all linear ones, or convolutions.",
    )
    lora_learning_rate: float = option(1e-4, "Of its AdamW; diffusers' own for LoRA, 20 times the full one.", above=0)


@dataclass(frozen=True, kw_only=True)
class VarietyConfig:
    """What simulated attackers vary: each draws one of every list. Empty: the paper's attacker, always the same."""

    instance_prompts: list[str] = option(
        [], 'Prompts they learn with beside instance_prompt: "a photo of t@t person", "a photo of sks man".'
    )
    learning_rates: list[float] = option([], "Rates in place of l2p.learning_rate.", above=0)
    inner_steps: list[int] = option(
        [], "Lengths in place of l2p.inner_steps; of a pool's attackers, of pool.depth.", at_least=1
    )
    photos: list[str] = option(
        [],
        "What they do to the photos instead of nothing, as texts of apdm/attacks/registry.py: "
        '"flip", "crop:margin=0.1", "jpeg:quality=50".',
    )
    prior_loss_weights: list[float] = option(
        [], "Weights in place of l2p.prior_loss_weight; 0: without prior preservation.", at_least=0
    )


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Attackers that persist over outer steps, in place of a new one in each. Not in the paper."""

    size: int = option(0, "Attackers of the protected; 0: Algorithm 1, a new one per outer step.", at_least=0)
    depth: int = option(240, "Steps after which an attacker starts anew.", at_least=1)
    stride: int = option(2, "Steps an attacker takes in its turn, one turn per outer step.", at_least=1)
    benign_size: int = option(
        0,
        "Further attackers who learn consenting people and are helped, so that others stay learnable.",
        at_least=0,
    )
    benign_weight: float = option(1.0, "Weight of their gradient, that of L_per after adaptation.", at_least=0)
    benign_data_dir: str | None = option(None, "Folder of those consenting people, <id>/*.jpg.")

    def __post_init__(self) -> None:
        if self.benign_size and not self.benign_data_dir:
            raise UserError("pool.benign_size needs people: name their folder with pool.benign_data_dir")
        if self.benign_size and not self.size:
            raise UserError("pool.benign_size is set but pool.size is 0; a pool needs attackers of the protected too")


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Direct Protective Optimization (Eq. 14)."""

    beta: float = option(
        1.0, "beta, the sharpness of the preference; the paper's Table 6 takes 1 over 10 and 100.", above=0
    )
    reduction: Literal["element", "sample"] = option(
        "element",
        "log-sigmoid of each latent element (the release) or of each sample's mean error (the formula; it "
        "needs a beta of order 1000).",
    )


@dataclass(frozen=True, kw_only=True)
class PreservationConfig:
    """What keeps the class as it was."""

    weight: float = option(1.0, "Weight of L_ppl in L_protect (Eq. 15).", at_least=0)
    anchor_weight: float = option(
        0.0,
        "Weight, at theta itself and once per outer step, of the distance to the base's predictions on class pictures "
        "under class and instance prompt; about twice inner_steps holds the class. Not in the paper; 0: off.",
        at_least=0,
    )
    anchor_prompts: list[str] = option(
        [],
        "Further prompts under which the anchor holds, such as ones that have nothing to do with the class; with them "
        "comes the empty one, which guidance subtracts.",
    )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Pictures, and a short probe attack, while hardening runs."""

    steps: int = option(0, "Validate every so many outer steps; 0: never.", at_least=0)
    prompts: list[str] = option(
        ["a photo of sks person", "a photo of person"], "Prompts drawn, each with the same noise every time."
    )
    num_images: int = option(4, "Pictures per prompt.", at_least=1)
    num_inference_steps: int = option(20, "Sampling steps; the paper's PNDM takes 20.", at_least=1)
    guidance_scale: float = option(7.5, "Classifier-free guidance; the paper's 7.5.", at_least=0)
    probe_steps: int = option(0, "Length of the probe attack that measures likeness; 0: no probe.", at_least=0)
    stop_when_protected: bool = option(
        False, "End hardening once the probe attack meets the audit's thresholds; needs probe_steps."
    )

    def __post_init__(self) -> None:
        if self.probe_steps and not self.steps:
            raise UserError("validation.probe_steps is set but validation.steps is 0; set it to how often to probe")
        if self.stop_when_protected and not self.probe_steps:
            raise UserError("validation.stop_when_protected needs validation.probe_steps above 0")
        if not self.prompts:
            raise UserError("validation.prompts is empty; give at least one")


@dataclass(frozen=True, kw_only=True)
class HardenConfig(JobConfig):
    """Harden a text-to-image pipeline so that fine-tuning it on the given subjects yields no likeness."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    preset: Literal["24gb", "48gb", "80gb"] | None = option(
        None,
        "Options for a card of this memory, as defaults: SD 1.5 from 24gb, SDXL from 48gb (by count: docs/memory.md).",
    )
    reference_model_name_or_path: str | None = option(
        None,
        "The original of a model that was hardened before, to add people to it: phi, and what draws and is audited as "
        "the base. Default: the model itself.",
    )
    rehearsal_data_dir: str | None = option(
        None, "Photos of the people it was hardened against before, <id>/*.jpg, so that they stay protected."
    )
    rehearsal_every: int = option(4, "Every so many attackers one is of those people.", at_least=2)
    train_batch_size: int = option(1, "Photos per step, over all processes.", at_least=1)
    max_train_steps: int = option(800, "N_protect: outer steps.", at_least=1)
    learning_rate: float = option(5e-6, "Of the outer AdamW on theta.", above=0)
    adam_beta1: float = option(0.9, "beta_1 of both AdamWs.", at_least=0, below=1)
    adam_beta2: float = option(0.999, "beta_2 of both AdamWs.", at_least=0, below=1)
    adam_weight_decay: float = option(1e-2, "Weight decay of both AdamWs.", at_least=0)
    adam_epsilon: float = option(1e-8, "epsilon of both AdamWs.", above=0)
    max_grad_norm: float = option(0.0, "Clips theta's accumulated gradient; 0: off, as released.", at_least=0)
    ema_decay: float = option(
        0.0,
        "What is exported is the average of theta over the last 1 / (1 - ema_decay) outer steps or so; 0: theta, as in "
        "the paper. Simulated attackers start from theta either way.",
        at_least=0,
        below=1,
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = option(
        "no", "Of the forward passes; weights stay float32. fp16, with loss scales, is for cards without bf16."
    )
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, more time.")
    gradient_accumulation_steps: int = option(
        1, "Parts in which a process works through its share of a batch: less memory, the same weights.", at_least=1
    )
    checkpointing_steps: int = option(
        100,
        "Save a checkpoint every so many outer steps and after the last; 0: only when interrupted, and after the last "
        "where image layer or audit follow.",
        at_least=0,
    )
    checkpoints_total_limit: int | None = option(2, "Checkpoints to keep; null: all.", at_least=1)
    resume_from_checkpoint: str | None = option(
        None, 'Go on from a checkpoint folder, or "latest": the newest in output_dir, where there is one.'
    )
    report_to: Literal["tensorboard", "wandb"] | None = option(None, "Tracker for the losses.")
    logging_dir: str = option("logs", "The tracker's folder, inside output_dir.")
    save_variant: Literal["fp16"] | None = option(None, "Also write the weights in half precision, under this variant.")
    single_file: bool = option(False, "Also write one .safetensors file as the common UIs load it.")
    l2p: L2PConfig = field(default_factory=L2PConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    variety: VarietyConfig = field(default_factory=VarietyConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    objective: Literal["dpo", "ascent"] = option(
        "dpo",
        "What the defender wants at the attacker's place: Direct Protective Optimization, or just a high error on the "
        "protected photos, the paper's naive baseline (Eq. 8), which wrecks the class.",
    )
    ascent_limit: float = option(
        0.0,
        "With ascent: a photo's error counts no further than so many times the original model's; 0: no bound.",
        at_least=0,
    )
    dpo: DPOConfig = field(default_factory=DPOConfig)
    preservation: PreservationConfig = field(default_factory=PreservationConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)

    def __post_init__(self) -> None:
        if self.rehearsal_data_dir and not self.reference_model_name_or_path:
            raise UserError(
                "rehearsal_data_dir is of people whom the model was hardened against before; name the original model "
                "with reference_model_name_or_path"
            )

    @property
    def base(self) -> str:
        return self.reference_model_name_or_path or self.pretrained_model_name_or_path
