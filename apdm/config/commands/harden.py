"""The options of `apdm harden`. Options that diffusers' training scripts have too get the same names.

Defaults are the settings of APDM's released code (NeurIPS 2025, arXiv 2511.01307) unless an option's help says
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

from apdm.config.groups.attackers import L2PConfig, PoolConfig, VarietyConfig
from apdm.config.groups.audit import AuditConfig
from apdm.config.groups.hub import hub_model_id_option, hub_overwrite_option, hub_public_option
from apdm.config.groups.job import JobConfig
from apdm.config.groups.presets import MEMORY_PRESETS, MemoryConfig
from apdm.config.options import option
from apdm.config.prompts import CLASS, INSTANCE, check_audit_prompts, default_audit_prompts, filled
from apdm.core.errors import UserError

LOWEST_RATE = 1e-7  # at the end of diffusers' polynomial schedule


@dataclass(frozen=True, kw_only=True)
class PreservationConfig:
    """Losses that keep the class as it was while the subjects become unlearnable."""

    weight: float = option(
        1.0,
        "Weight of the prior preservation loss L_ppl in the protective loss (Eq. 15). Higher values keep the class "
        "better and protect less. 1 is the paper's.",
        at_least=0,
    )
    anchor_weight: float = option(
        0.0,
        "Weight of the anchor loss: the distance between theta's and the original model's predictions on class "
        "pictures, with the class prompt and with the instance prompt. It is computed once per outer step, at theta, "
        "and costs one more forward and backward pass. A weight of about twice l2p.inner_steps keeps the class as it "
        "was. The paper has no anchor; 0 turns it off.",
        at_least=0,
    )
    anchor_prompts: list[str] = option(
        [],
        "Further prompts under which the anchor compares predictions, for example some that have nothing to do with "
        "the class. If any are given, the empty prompt is added, because classifier-free guidance uses it.",
    )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation while hardening runs: it draws pictures, and can run a short probe attack."""

    steps: int = option(
        0,
        "Outer steps between two validations, which draw pictures. 0 never validates, which is fastest.",
        at_least=0,
        common="what is made",
    )
    prompts: list[str] = option(
        [],
        "Prompts to draw, by default instance_prompt and class_prompt, for which {instance_prompt} and {class_prompt} "
        "stand. Each is drawn with the same noise every time, so that pictures of different steps compare.",
    )
    num_images: int = option(4, "Pictures per prompt; their time grows in proportion.", at_least=1)
    num_inference_steps: int = option(20, "Sampling steps of these pictures. 20 is the paper's, with PNDM.", at_least=1)
    guidance_scale: float = option(
        7.5, "Classifier-free guidance of these pictures. 7.5 is the paper's and diffusers' default.", at_least=0
    )
    probe_steps: int = option(
        0,
        "Steps of the probe, a DreamBooth attack on a copy of the model. Afterwards the likeness to the first subject "
        "is measured. The probe needs memory for one more model with its optimizer. 0 runs no probe.",
        at_least=0,
    )
    stop_when_protected: bool = option(
        False,
        "End hardening early after two probe attacks in a row whose likeness exceeds the likeness of strangers by at "
        "most audit.max_likeness_over_strangers. Needs probe_steps.",
    )

    def __post_init__(self) -> None:
        if self.probe_steps and not self.steps:
            raise UserError("validation.probe_steps is set but validation.steps is 0; set it to how often to probe")
        if self.stop_when_protected and not self.probe_steps:
            raise UserError("validation.stop_when_protected needs validation.probe_steps above 0")


@dataclass(frozen=True, kw_only=True)
class HardenConfig(JobConfig):
    """Harden a text-to-image pipeline so that fine-tuning it on the given subjects yields less likeness, later."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MEMORY_PRESETS

    preset: Literal["24gb", "48gb", "80gb"] | None = option(
        None,
        "Sets options that save memory, for a card of this size. By a count of the buffers, Stable Diffusion "
        "1.5 needs 24gb or more, and SDXL 48gb or more. Options that are given in the file or on the command line win "
        "over the preset. By default there is no preset.",
        common="memory",
    )
    reference_model_name_or_path: str | None = option(
        None,
        "The original model, to protect more people in one that was hardened before. The original is the reference "
        " phi, draws the class pictures, and is the base of the audit. By default "
        "pretrained_model_name_or_path.",
        holds="path",
        common="model",
    )
    rehearsal_data_dir: str | None = option(
        None,
        "Folder of the photos, <id>/*.jpg, of people whom the model was hardened against before. Some simulated "
        "attackers learn these people, so that adding new people does not undo the old protection.",
        holds="folder",
    )
    rehearsal_every: int = option(
        4,
        "With the value n, every n-th simulated attacker learns a person of rehearsal_data_dir. A smaller number keeps "
        "the old protection better and leaves fewer attackers for the new people.",
        at_least=2,
    )
    pairs: Literal["drawn", "folder", "none"] = option(
        "drawn",
        "The safe partner x^+ of each protected photo, a picture that the model may draw in its place. drawn: the "
        "partners in <id>/safe/ are taken; for people without this folder, the base model draws one fixed partner for "
        "each photo with class_prompt, as the paper does. folder: everybody must have partners in <id>/safe/. none: no "
        "partners, random class pictures take their place. This is the paper's ablation, which protects less well in "
        "its Table 4.",
    )
    train_batch_size: int = option(
        1,
        "Photos per training step, over all processes together. More photos give smoother gradients and take "
        "proportionally more time and memory. 1 is the released code's.",
        at_least=1,
        common="how long, and how strongly",
    )
    max_train_steps: int = option(
        800,
        "Outer steps (N_protect). Time grows in proportion. 800 is the paper's, for one person. Several people need "
        "more steps, because each attacker learns only one person.",
        at_least=1,
        common="how long, and how strongly",
    )
    learning_rate: float = option(
        5e-6,
        "Learning rate of the AdamW that moves the protected weights theta. Higher values protect sooner and damage "
        "the class sooner. 5e-6 is the paper's.",
        above=0,
        common="how long, and how strongly",
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = option(
        "constant",
        "How theta's learning rate changes over max_train_steps, by diffusers' names. The simulated attacker's rate "
        "stays as it is. constant is the paper's. A resumed run goes on with the same rates; with a larger "
        "max_train_steps, a schedule that ends there becomes longer.",
    )
    lr_warmup_steps: int = option(
        0, "Outer steps in which theta's learning rate grows from 0. lr_scheduler constant has none.", at_least=0
    )
    lr_num_cycles: int = option(1, "How often lr_scheduler cosine_with_restarts starts from learning_rate.", at_least=1)
    lr_power: float = option(1.0, "The power of lr_scheduler polynomial.", above=0)
    adam_beta1: float = option(
        0.9, "AdamW's beta_1, for theta and for the simulated attacker. 0.9 is PyTorch's default.", at_least=0, below=1
    )
    adam_beta2: float = option(
        0.999,
        "AdamW's beta_2, for theta and for the simulated attacker. 0.999 is PyTorch's default.",
        at_least=0,
        below=1,
    )
    adam_weight_decay: float = option(
        1e-2, "AdamW's weight decay, for theta and for the simulated attacker. 0.01 is PyTorch's default.", at_least=0
    )
    adam_epsilon: float = option(
        1e-8, "AdamW's epsilon, for theta and for the simulated attacker. 1e-8 is PyTorch's default.", above=0
    )
    max_grad_norm: float = option(
        0.0,
        "Clip theta's accumulated gradient to this norm; 0 does not clip, as in the released code.",
        at_least=0,
    )
    ema_decay: float = option(
        0.0,
        "Export a running average of theta over about the last 1 / (1 - ema_decay) outer steps instead of theta. It "
        "holds one more copy of the weights. Simulated attackers start from theta either way. 0 exports theta, as the "
        "paper does.",
        at_least=0,
        below=1,
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = option(
        "no",
        "Precision of forward and backward passes; weights and optimizers stay float32. bf16 is faster and takes less "
        "memory. fp16, which needs loss scales, is for cards without bf16. no means float32, as in the released code.",
        common="memory",
    )
    gradient_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass instead of keeping them. This takes much less memory, and costs "
        "about one more forward pass per step.",
        common="memory",
    )
    cuda_graphs: bool = option(
        True,
        "Record the passes of the networks as CUDA graphs, which starts their kernels with one call. The numbers are "
        "the same. It takes one more gradient of memory, and is left out if so much is not free. Without effect on "
        "other devices, and where a launcher shards the weights. With DDP only the frozen original is replayed.",
    )
    channels_last: bool = option(
        False,
        "Keep the weights of convolutions in the memory format channels_last during the training, which spares GPUs a "
        "change of layout. The weights differ only in rounding, and the exported files have the same layout. For one "
        "process or DDP, with l2p.optimizer adamw.",
    )
    gradient_accumulation_steps: int = option(
        1,
        "Number of parts in which each process works through its share of a batch. More parts take less memory and "
        "more time; the result is the same.",
        at_least=1,
        common="memory",
    )
    checkpointing_steps: int = option(
        100,
        "Number of outer steps between two checkpoints; one more is saved after the last step. 0 saves a checkpoint "
        "only when the run is interrupted and after the last step. The latter is deleted when the model is written, "
        "unless photo protection or audit follow.",
        at_least=0,
        common="output",
    )
    checkpoints_total_limit: int | None = option(
        2, "How many checkpoints to keep; older ones are deleted. null keeps all.", at_least=1
    )
    resume_from_checkpoint: str | None = option(
        None,
        "A checkpoint folder to go on from, such as checkpoint-000100; one in output_dir may be given by its name "
        'alone. Or "latest" for the newest checkpoint in output_dir. If output_dir has no '
        "checkpoint, latest starts from the beginning. A resumed run ends with the same weights as a run that was "
        "never stopped.",
        holds="path",
        common="output",
    )
    fail_if_unprotected: bool = option(
        False,
        "End with exit code 1 if the audit at the end of the run says that the people are not protected, for scripts. "
        "By default a finished run ends with 0, whatever its audit says. Needs audit.enabled.",
    )
    save_variant: Literal["fp16"] | None = option(
        None,
        "Also write the weights in half precision, as the variant of this name. The files take half as much again.",
    )
    save_dtype: Literal["float32"] | None = option(
        None,
        "Float type of the hardened denoiser's weights. By default the type in which the base model is stored. float32 "
        "keeps small changes, which a base stored in float16 or bfloat16 rounds away, and doubles the size of these "
        "weights.",
    )
    single_file: bool = option(
        False,
        "Also write the model as one .safetensors file, in the layout that the common user interfaces load. Of FLUX "
        "and Z-Image this is the transformer alone: text encoders and VAE are the files of the base.",
        common="what is made",
    )
    push_to_hub: bool = option(
        False,
        "Push the hardened model to the Hugging Face Hub when the run is finished, as apdm push does. Token and "
        "repository are checked before the run starts.",
        common="output",
    )
    hub_model_id: str | None = hub_model_id_option()
    hub_public: bool = hub_public_option()
    hub_overwrite: bool = hub_overwrite_option()
    l2p: L2PConfig = field(default_factory=L2PConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    variety: VarietyConfig = field(default_factory=VarietyConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    objective: str = option(
        "dpo:beta=1,reduction=element",
        "The loss that the defender lowers at the simulated attacker's weights. "
        '"dpo:beta=1,reduction=element" is Direct Protective Optimization as released. beta is the sharpness of the '
        "preference. With reduction=sample, errors are averaged over a sample before the sigmoid; beta is then of the "
        "order of 1000. The formula has their sum, so its beta is that of sample divided by the number of elements in "
        "a photo's latents. The gradient is up to beta times that of the errors, so with a larger beta "
        "preservation.weight has to be larger too. "
        '"ascent:limit=0" is the paper\'s naive baseline, a high error on the protected photos, which ruins the class. '
        "With limit above 0, the error stops rising at limit times the original model's error. "
        '"file.py:Name" is an objective of your own: see docs/adding-an-objective.md.',
        holds="spec",
    )
    preservation: PreservationConfig = field(default_factory=PreservationConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        fill = partial(filled, instance_prompt=self.instance_prompt, class_prompt=self.class_prompt)
        audit = replace(self.audit, prompts=fill(self.audit.prompts or default_audit_prompts(self.instance_prompt)))
        shown = replace(self.validation, prompts=fill(self.validation.prompts or [INSTANCE, CLASS]))
        kept = replace(self.preservation, anchor_prompts=fill(self.preservation.anchor_prompts))
        for name, group in (("audit", audit), ("validation", shown), ("preservation", kept)):
            object.__setattr__(self, name, group)
        if self.subject_kind == "object" and self.measures_likeness:
            self.audit.check_object(self.instance_prompt, self.class_prompt, {})
        if self.audit.enabled:
            check_audit_prompts(self.audit.prompts, self.instance_prompt, self.class_prompt, prefix="audit.")
        if self.measures_likeness:
            self.audit.check_sets(self.protected_set, with_model=True)
        if self.pairs == "folder" and self.dataset_name is not None:
            raise UserError("pairs is folder, and a dataset has no partners; give --pairs drawn or --pairs none")
        if self.variety.caption_column and self.dataset_name is not None:
            raise UserError(
                "variety.caption_column reads captions beside photos in folders, and the photos are a dataset's; write "
                "them into instance_data_dir, or leave variety.caption_column out"
            )
        if self.rehearsal_data_dir and not self.reference_model_name_or_path:
            raise UserError(
                "rehearsal_data_dir is of people whom the model was hardened against before; name the original model "
                "with reference_model_name_or_path"
            )
        self._check_schedule()
        given = [name for name in ("hub_model_id", "hub_public", "hub_overwrite") if getattr(self, name)]
        if given and not self.push_to_hub:
            raise UserError(f"{given[0]} is given, and nothing is pushed; add --push_to_hub true")
        if self.fail_if_unprotected and not self.audit.enabled:
            raise UserError("fail_if_unprotected needs an audit; add --audit.enabled true")

    def _check_schedule(self) -> None:
        """Raise UserError if an option of the learning rate's schedule has no effect, or leaves no step to train."""
        name, only = self.lr_scheduler, "which only lr_scheduler {} has; choose it, or leave {} out"
        if self.lr_warmup_steps and name == "constant":
            raise UserError("lr_warmup_steps is given, and lr_scheduler constant has no warm-up; choose another one")
        if self.lr_warmup_steps >= self.max_train_steps:
            raise UserError("lr_warmup_steps leaves none of max_train_steps at the full learning rate; lower it")
        if self.lr_num_cycles != 1 and name != "cosine_with_restarts":
            raise UserError(f"lr_num_cycles is given, {only.format('cosine_with_restarts', 'it')}")
        if self.lr_power != 1 and name != "polynomial":
            raise UserError(f"lr_power is given, {only.format('polynomial', 'it')}")
        if name == "polynomial" and self.learning_rate <= LOWEST_RATE:
            raise UserError(f"lr_scheduler polynomial ends at a rate of {LOWEST_RATE}; give a higher learning_rate")

    @property
    def protects_photos(self) -> bool:
        return self.image_layer.enabled

    @property
    def base(self) -> str:
        return self.reference_model_name_or_path or self.pretrained_model_name_or_path

    @property
    def measures_likeness(self) -> bool:
        """Whether likeness to the protected people is measured: by the audit at the end, or by the probe before it."""
        return self.audit.enabled or bool(self.validation.probe_steps)

    @property
    def photo_folders(self) -> dict[str, str]:
        """{option: folder} of the folders with photos of people that this run reads."""
        folders: dict[str, str | None] = {"instance_data_dir": self.instance_data_dir}
        folders["rehearsal_data_dir"] = self.rehearsal_data_dir
        if self.pool.benign_size:
            folders["pool.benign_data_dir"] = self.pool.benign_data_dir
        if self.measures_likeness:
            folders |= self.audit.photo_folders
        return {name: folder for name, folder in folders.items() if folder is not None}
