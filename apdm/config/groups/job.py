"""The options that `apdm harden` and `apdm perturb` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from apdm.config.groups.dataset import CLASS, PEOPLE, DatasetConfig, folder_for
from apdm.config.groups.image_layer import NO_METHOD, ImageLayerConfig
from apdm.config.groups.model_options import (
    allow_pickle_option,
    faces_option,
    family_option,
    num_threads_option,
    single_file_config_option,
)
from apdm.config.groups.subject_kind import SubjectKind, check_object, subject_kind_option
from apdm.config.groups.trackers import check_trackers, logging_dir_option, report_people_option, report_to_option
from apdm.config.options import DRY_RUN, option
from apdm.config.prompts import INSTANCE_PROMPT, default_class_prompt
from apdm.core.errors import UserError
from apdm.core.opaque_ids import opaque_id

ZERO_SHOT = "image_layer.zero_shot.enabled"


@dataclass(frozen=True, kw_only=True)
class JobConfig(DatasetConfig):
    """Options of every job over subjects: the model, the photos, the class pictures, and the output folder."""

    pretrained_model_name_or_path: str = option(
        help="The model: a diffusers folder, a single-file checkpoint or a Hub name.",
        holds="path",
        common="model",
    )
    family: str | None = family_option()
    single_file_config: str | None = single_file_config_option("a single-file checkpoint", "the checkpoint")
    revision: str | None = option(None, "Branch, tag or commit of the model on the Hub. By default its main branch.")
    variant: str | None = option(
        None,
        'Which files of the model to load: "fp16" loads model.fp16.safetensors. A hardened model gets the same '
        "names. By default the files without a suffix.",
    )
    allow_pickle: bool = allow_pickle_option()
    instance_data_dir: str = option(
        "",
        "Folder of the photos, <id>/*.jpg or any other kind that Pillow reads, one folder for each subject. A "
        "folder <id>/safe/ may hold one safe partner for each photo, with the same name: a picture that the model "
        "may draw in place of the subject; see the option pairs of apdm harden. "
        "Required unless dataset_name is given.",
        holds="folder",
        common="photos",
    )
    protected_set: Literal["A", "B", "C", "D"] = option(
        "A",
        "Which photos to protect if those of each subject lie in <id>/set_A, set_B and set_C, as in Anti-DreamBooth's "
        "data. A is APDM's choice; Anti-DreamBooth itself protects the photos in B.",
    )
    subject_kind: SubjectKind = subject_kind_option()
    class_data_dir: str | None = option(
        None,
        "Folder of class pictures. Pictures of your own are used as they are, directly in it or in folders inside it, "
        "such as kohya's 1_person; otherwise the base model draws num_class_images of them there. By default a folder "
        "in output_dir.",
        holds="path",
    )
    instance_prompt: str = option(
        INSTANCE_PROMPT,
        'The prompt that simulated attackers learn a subject with (c_per in the paper). "sks" is the rare word that '
        "DreamBooth uses as a name; this is the paper's prompt.",
        common="photos",
    )
    class_prompt: str = option(
        "",
        "The prompt of the class pictures (c_pr in the paper): the class that subjects belong to, without the rare "
        'word. By default "a photo of person", the paper\'s, or instance_prompt without its rare word if it names '
        "another class.",
        common="photos",
    )
    num_class_images: int = option(
        200,
        "Number of class pictures for prior preservation (x_pr). More pictures keep the class more diverse. They are "
        "drawn once for each model, which takes proportionally longer. 200 is the released code's number.",
        at_least=1,
        common="photos",
    )
    num_inference_steps: int = option(
        50,
        "Sampling steps for the class pictures. With more steps, pictures look better and take proportionally longer. "
        "50 is diffusers' default.",
        at_least=1,
    )
    guidance_scale: float = option(
        7.5,
        "Classifier-free guidance for the class pictures. Higher values follow the prompt more closely, with less "
        "variety. 7.5 is diffusers' default.",
        at_least=0,
    )
    sample_batch_size: int = option(
        4,
        "How many pictures are drawn at once. More are faster and take more memory. 4 is DreamBooth's default.",
        at_least=1,
    )
    resolution: int = option(
        512,
        "Side in pixels of the squares that photos are resized and cropped to. Use the resolution that the model was "
        "trained at: 512 for Stable Diffusion 1.5, 1024 for SDXL.",
        at_least=16,
        multiple_of=8,
        common="model",
    )
    output_dir: str = option(
        help="Folder for everything that the run makes. It must be new, empty, or from an earlier run of this program.",
        holds="path",
        common="output",
    )
    overwrite_output_dir: bool = option(
        False,
        "Replace the result of an earlier run in output_dir. Folders of other programs are never touched.",
        common="output",
    )
    dry_run: bool = option(False, DRY_RUN, common="output")
    report_to: Literal["tensorboard", "wandb"] | None = report_to_option()
    logging_dir: str = logging_dir_option()
    report_people: bool = report_people_option()
    seed: int = option(
        0,
        "Seed of all random choices. On a CPU the same seed gives the same weights bit for bit.",
        at_least=0,
        below=2**32,
        common="output",
    )
    num_threads: int | None = num_threads_option(" The number matters because results depend on it in the last digits.")
    faces: list[str] = faces_option("it detects and aligns, and its recogniser is what image_layer.zero_shot misleads")
    image_layer: ImageLayerConfig = field(default_factory=ImageLayerConfig)

    def __post_init__(self) -> None:
        self.check_datasets()
        check_trackers(self)
        # Names of people must not stand in config.yaml, nor anywhere else that a run writes.
        object.__setattr__(self, "dataset_subjects", [opaque_id(name) for name in self.dataset_subjects])
        if not self.instance_data_dir and self.dataset_name is None:
            raise UserError("instance_data_dir must be given, the folder of the photos; or dataset_name")
        for option_name, kind, dataset in (
            ("instance_data_dir", PEOPLE, "dataset_name"),
            ("class_data_dir", CLASS, "class_dataset_name"),
        ):
            given, names = getattr(self, option_name), (dataset, option_name)
            folder = folder_for(getattr(self, dataset), given, kind, self.output_dir, names=names)
            object.__setattr__(self, option_name, folder)
        if not self.class_prompt:
            object.__setattr__(self, "class_prompt", default_class_prompt(self.instance_prompt))
        if self.subject_kind == "object":
            self._check_object()

    @staticmethod
    def defaults_from(given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults that follow from what is given: objects have no zero-shot layer, which misleads faces."""
        layers = (given.get("image_layer.method"), given.get(ZERO_SHOT))
        off = given.get("subject_kind") == "object" and layers[0] != NO_METHOD and layers[1] is None
        return {ZERO_SHOT: False} if off else {}

    def _check_object(self) -> None:
        """Check the options of a run on objects. Its zero-shot layer, which misleads face encoders, must be off."""
        layer = self.image_layer.zero_shot
        about_faces: dict[str, Any] = {
            "faces": self.faces,
            "image_layer.zero_shot.encoders": layer.encoders,
            "image_layer.zero_shot.detector": layer.detector,
        }
        if self.image_layer.method != NO_METHOD:
            about_faces[ZERO_SHOT] = layer.enabled
        check_object(self.instance_prompt, self.class_prompt, about_faces)
        if self.image_layer.method == NO_METHOD and self.protects_photos:
            raise UserError(
                "image_layer.method is none, and for subject_kind object there is no other layer, so nothing would be "
                "protected; name a method, such as dladiff"
            )

    @property
    def protects_photos(self) -> bool:
        """Whether the run writes protected photos."""
        return True

    @property
    def photo_source(self) -> str:
        """Where the photos come from, in words."""
        if self.dataset_name is None:
            return self.instance_data_dir
        return f"dataset {self.dataset_name}, split {self.dataset_split}"

    @property
    def base(self) -> str:
        """Path or name of the original model, before any hardening."""
        return self.pretrained_model_name_or_path
