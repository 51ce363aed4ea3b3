"""The options of `apdm attack`: one model, the photos of people, and the attacks. Most are those of `apdm audit`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from apdm.config.commands.audit import AuditJobConfig
from apdm.config.groups.audit import AuditOptions
from apdm.config.groups.subject_kind import SubjectKind
from apdm.config.groups.trackers import check_trackers
from apdm.config.options import option
from apdm.config.prompts import complete_audit_prompts
from apdm.core.errors import UserError


def as_audit(name: str, **changes: Any) -> Any:
    """Declare the option that `apdm audit` has under this name. `changes` are as for `option`."""
    field = next(field for field in dataclasses.fields(AuditJobConfig) if field.name == name)
    kept = {key: field.metadata[key] for key in ("help", "holds", "common")} | field.metadata["limits"]
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return option(**{"default": default, **kept, **changes})


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Attack one model with photos of a person, and show how alike its pictures become while the attack runs."""

    pretrained_model_name_or_path: str = option(
        help="The model to attack: a diffusers pipeline folder, a single-file checkpoint, or a name on the Hugging "
        "Face Hub. On the command line it may come first without a name: apdm attack MODEL --photos DIR.",
        holds="path",
        common="model",
    )
    photos: str = option(
        help="Folder of a person's photos, or of one folder for each person: DIR/<id>/*.jpg. The last third by name "
        "(at least 2 of at least 4) is held out: likeness is measured against it. Every person is attacked. The other "
        "layouts of apdm audit's subjects are understood too.",
        holds="folder",
        common="photos",
    )
    attack: list[str] = option(
        ["dreambooth"],
        'The attacks, each with its options: "lora:rank=32". Those without training, such as "img2img" and "faceid", '
        'are among them. "lora:caption_column=text" trains each photo under its own caption, from a metadata.jsonl '
        'beside the photos. The page "Attacks" of the documents lists all.',
        holds="spec",
        common="attacks",
    )
    edit_prompts: str | None = option(
        None,
        "Folder with a prompt for each photo, for attacks that edit photos: <id>/prompt.txt, as in Defense-Edit, or a "
        "metadata.jsonl or .csv with file_name, prompt and perhaps source_prompt. Photo after photo is edited in turn, "
        "num_images times in all for each of prompts. By default every photo is edited with prompts, without the rare "
        "word.",
        holds="folder",
    )
    faceid_adapter: str | None = as_audit(
        "faceid_adapter",
        help="The FaceID or InstantID adapter (.safetensors) that the attack faceid draws with.",
    )
    faceid_encoder: str | None = as_audit("faceid_encoder")
    faceid_controlnet: str | None = as_audit("faceid_controlnet")
    learning_rate: float = as_audit("learning_rate", common="attacks")
    max_train_steps: int = as_audit(
        "max_train_steps",
        help="Steps of DreamBooth, and of the other attacks that train the whole denoiser. Attacks of other kinds have "
        "numbers of their own: lora:max_train_steps=500.",
        common="how long",
    )
    train_batch_size: int = as_audit("train_batch_size")
    prior_loss_weight: float = as_audit("prior_loss_weight")
    gradient_checkpointing: bool = as_audit("gradient_checkpointing", common="memory")
    num_class_images: int = as_audit("num_class_images", common="how long")
    eval_steps: list[int] = as_audit(
        "eval_steps",
        help="Steps after which pictures are drawn and likeness is measured, besides the first and the last; of "
        "max_train_steps. An attack of another length is measured at the same shares of it. By default a quarter, half "
        "and three quarters.",
        common="how long",
    )
    num_images: int = as_audit("num_images", common="how long")
    num_inference_steps: int = as_audit("num_inference_steps")
    guidance_scale: float = as_audit("guidance_scale")
    prompts: list[str] = as_audit("prompts")
    holdout_data_dir: str | None = as_audit("holdout_data_dir", common="photos")
    attacker_set: Literal["A", "B", "C", "D"] = as_audit("attacker_set")
    holdout_set: Literal["A", "B", "C", "D"] = as_audit("holdout_set")
    strangers_data_dir: str | None = as_audit(
        "strangers_data_dir",
        help="Folder of photos of any other people, loose or one folder each. Their likeness to the person is the "
        "likeness by chance. By default the model's own class pictures are used as strangers.",
    )
    faces: list[str] = as_audit("faces")
    encoders: list[str] = as_audit("encoders")
    face_score: str | None = as_audit("face_score")
    judge: list[str] = as_audit("judge")
    subject_kind: SubjectKind = as_audit("subject_kind")
    instance_prompt: str = as_audit("instance_prompt", help="The prompt that the attacker learns the person with.")
    class_prompt: str = as_audit("class_prompt")
    resolution: int = as_audit("resolution")
    sample_batch_size: int = as_audit("sample_batch_size")
    family: str | None = as_audit("family")
    single_file_config: str | None = as_audit("single_file_config")
    variant: str | None = as_audit(
        "variant", help='Which files of the model to load, such as "fp16". By default the files without a suffix.'
    )
    allow_pickle: bool = as_audit("allow_pickle")
    save_model: bool = option(
        False,
        "Keep the attacked models, as pipeline folders in attacked_models/. They draw the person whose photos were "
        "given, so keep them to yourself.",
        common="output",
    )
    reuse_audits: list[str] = as_audit(
        "reuse_audits",
        help="Output folders of earlier audits and attacks. What was run there with the same model as base, photos, "
        "seed, options and package versions is not run again.",
        common=None,
    )
    output_dir: str = option(
        help="Folder for the figures, the pictures and the page. If an attack is stopped, the same command goes on.",
        holds="path",
        common="output",
    )
    overwrite_output_dir: bool = as_audit(
        "overwrite_output_dir", help="Replace an attack with other options in output_dir."
    )
    dry_run: bool = as_audit("dry_run")
    report_to: Literal["tensorboard", "wandb"] | None = as_audit(
        "report_to",
        help="The tracker that likeness curves go to. By default none. Prompts, photos, and ids and pictures of people "
        "never go there unless report_people is true.",
    )
    logging_dir: str = as_audit("logging_dir")
    report_people: bool = as_audit(
        "report_people",
        help="Also send the tracker the pictures of the attacks, under the ids of the people, and the page. A tracker "
        "that is a web service shows them to everybody who may open the project, and keeps them; so this is off by "
        "default. Needs report_to.",
    )
    seed: int = as_audit("seed")
    num_threads: int | None = as_audit("num_threads")

    def __post_init__(self) -> None:
        check_trackers(self)
        is_meant = bool(self.class_prompt)  # who spells out the class prompt has not forgotten that there are prompts
        complete_audit_prompts(self)
        if not self.attack:
            raise UserError("attack needs at least one attack, such as dreambooth or lora:rank=32")
        audit = self.audit
        audit.check_sets(self.attacker_set, with_model=True)
        if self.subject_kind == "object":
            audit.check_object(self.instance_prompt, self.class_prompt, {"faces": self.faces}, is_meant=is_meant)

    @property
    def base(self) -> str:
        """The model under the name that it has in an audit."""
        return self.pretrained_model_name_or_path

    @property
    def audit(self) -> AuditOptions:
        """The options of an audit that attacks and measures in the same way."""
        names = {field.name for field in dataclasses.fields(self)}
        shared = [field.name for field in dataclasses.fields(AuditOptions) if field.name in names]
        return AuditOptions(**{name: getattr(self, name) for name in shared})
