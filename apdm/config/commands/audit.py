"""The options of `apdm audit`: those of every audit, with the models, the people and the output folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from apdm.config.groups.audit import AuditOptions
from apdm.config.groups.model_options import (
    allow_pickle_option,
    faces_option,
    family_option,
    num_threads_option,
    single_file_config_option,
)
from apdm.config.groups.photo_audit import check_together
from apdm.config.groups.subject_kind import SubjectKind, subject_kind_option
from apdm.config.groups.trackers import check_trackers, logging_dir_option, report_people_option, report_to_option
from apdm.config.options import DRY_RUN, option
from apdm.config.photo_run import defaults_from_run
from apdm.config.prompts import INSTANCE_PROMPT, complete_audit_prompts
from apdm.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AuditJobConfig(AuditOptions):
    """Attack base and hardened model, or clean and protected photos, and say whether the subjects are protected."""

    base: str | None = option(
        None,
        "The model before hardening. It is a diffusers pipeline folder, a single-file checkpoint, or a name on the "
        "Hugging Face Hub. The other models can be given in the same ways. It must be given with hardened. For photos "
        "alone it is the model that is attacked; by default the one that protected them, if config.yaml beside them "
        "says which.",
        holds="path",
        common="model",
    )
    hardened: str | None = option(
        None,
        "The same model after hardening. Without it, only photos are audited: give protected_photos and photos.",
        holds="path",
        common="model",
    )
    subjects: str | None = option(
        None,
        "The people's photos. A folder with attacker/<id>/*.jpg (the photos that the attacker has) and "
        "holdout/<id>/*.jpg (hold-out photos, which define likeness), perhaps also other/<id>/ and strangers/. Or a "
        "folder of <id>/*.jpg, of which the last third is held out from the attacker unless holdout_data_dir is given. "
        "Or a folder of <id>/set_A, set_B and set_C; see attacker_set and holdout_set. It must be given with hardened.",
        holds="folder",
        common="photos",
    )
    protected_set: Literal["A", "B", "C", "D"] = option(
        "A", "Which photos were protected, where those of each person lie in sets; see attacker_set."
    )
    placebo: str | None = option(
        None,
        "A control: the base, hardened the same way against other people. It shows whether the "
        "attack fails because these people are protected, or because the model is damaged. It is attacked too, which "
        "takes half as long again.",
        holds="path",
    )
    sibling: str | None = option(
        None,
        "Another fine-tuning of the base, for attacks that merge models. Without it these attacks "
        "are left out, and a suite that requires them cannot show protection.",
        holds="path",
    )
    hardened_sibling: str | None = option(
        None, "The sibling after hardening, for the attack that subtracts the hardening.", holds="path"
    )
    protected_photos: str | None = option(
        None,
        "Protected photos, which are attacked on the base beside their originals: the output folder of apdm perturb or "
        "apdm harden, or a folder <id>/*.png that any other tool made.",
        holds="folder",
        common="photos",
    )
    photos: str | None = option(
        None,
        "Folder of the originals of protected_photos, <id>/*.jpg, with the same file names. With hardened by default "
        "protected/ in the folder of subjects. For photos alone, without holdout_data_dir, the last third of each "
        "person's photos (at least 2 of at least 4) is held out.",
        holds="folder",
        common="photos",
    )
    instance_data_dir: str | None = option(None, "The earlier name of photos.", holds="folder")
    suite: Literal["quick", "standard", "full"] = option(
        "standard",
        "Which attacks to run. quick: DreamBooth and LoRA on one person. standard: the nominal attack on every person, "
        "and more attacks on one person. full: still more, most of them on every person. standard and full require a "
        "sibling; without one, name single attacks with the option attacks.",
        common="attacks",
    )
    attacks: list[str] = option(
        [],
        'Attacks to run in place of the suite, such as "lora:rank=32". The verdict then requires all of them. With '
        '"lora:caption_column=text" each photo is trained under its own caption, from a metadata.jsonl beside the '
        "photos.",
        holds="spec",
        common="attacks",
    )
    caption_column: str | None = option(
        None,
        "An attack of the suites standard and full trains each photo under its own caption. The captions are in this "
        'column of a metadata.jsonl beside the photos; ".txt" stands for text files. Without this option the column '
        "is text, and the attack is left out where there are no captions.",
        common="attacks",
    )
    search: int = option(
        0,
        "Let an attacker search for the best attack on each model with so many trials, besides the suite: over "
        "DreamBooth and LoRA, rate, batch, rank, prior, and weights of the noise levels. Takes the time of so many "
        "attacks on each model, and needs apdm[search]. 0 does not search.",
        at_least=0,
        common="attacks",
    )
    search_samples: int | None = option(
        None,
        "The budget of each trial: pictures that it may train on (steps times batch, twice with prior preservation). "
        "By default those of the nominal attack.",
        at_least=1,
    )
    search_min_face_rate: float = option(
        0.8,
        "The search counts only models whose pictures show a face in at least this share.",
        at_least=0,
        at_most=1,
    )
    search_people: int = option(
        1, "With the photos of how many protected people the attacker searches. Each costs a search.", at_least=1
    )
    known_before: bool = option(
        False,
        "Also measure whether the released model knows the people without fine-tuning: textual inversion, and the "
        "subject's prompts at guidance 1 to 12.",
    )
    seeds: int = option(
        3,
        "How often attacks are repeated, with seeds that count up from seed. The suite standard repeats the nominal "
        "attack alone, quick none. A claim of protection needs at least 3.",
        at_least=1,
        common="how long",
    )
    subject_kind: SubjectKind = subject_kind_option()
    instance_prompt: str = option(
        INSTANCE_PROMPT,
        "The prompt that attackers learn a subject with. For photos alone by default that of the run that protected "
        "them; so are class_prompt and resolution.",
        common="photos",
    )
    class_prompt: str = option(
        "", "The prompt of the class that subjects belong to. By default instance_prompt without its rare word."
    )
    resolution: int = option(
        512, "Side in pixels of the squares that attackers make of photos.", at_least=16, multiple_of=8, common="model"
    )
    sample_batch_size: int = option(
        16,
        "How many pictures are drawn or encoded at once. More are faster and take more memory.",
        at_least=1,
        common="memory",
    )
    family: str | None = family_option()
    single_file_config: str | None = single_file_config_option("models that are single-file checkpoints", "all of them")
    variant: str | None = option(
        None,
        'Which files of the models to load, such as "fp16". If only some of the models have such files, the others are '
        "loaded from their files without a suffix. By default the files without a suffix.",
    )
    allow_pickle: bool = allow_pickle_option()
    faces: list[str] = faces_option("it detects and aligns")
    output_dir: str = option(
        help="Folder for results, report and finished attacks. If an audit is stopped, the same command continues it.",
        holds="path",
        common="output",
    )
    overwrite_output_dir: bool = option(False, "Replace an audit with other options in output_dir.", common="output")
    dry_run: bool = option(False, DRY_RUN, common="output")
    report_to: Literal["tensorboard", "wandb"] | None = report_to_option()
    logging_dir: str = logging_dir_option()
    report_people: bool = report_people_option()
    seed: int = option(0, "Seed of all random choices.", at_least=0, below=2**32, common="output")
    num_threads: int | None = num_threads_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trackers(self)
        complete_audit_prompts(self)
        self.check_sets(self.protected_set, with_model=self.hardened is not None)
        if self.subject_kind == "object":
            self.check_object(self.instance_prompt, self.class_prompt, {"faces": self.faces})
        if self.instance_data_dir is not None and self.protected_photos is not None:
            if self.photos not in (None, self.instance_data_dir):
                raise UserError("photos and instance_data_dir are two names of one option: leave one of them out")
            object.__setattr__(self, "photos", self.instance_data_dir)
        check_together(self)
        if not self.search:
            alone = ("search_samples", "search_min_face_rate", "search_people")
            given = [name for name in alone if getattr(self, name) != type(self).__dataclass_fields__[name].default]
            if given:
                raise UserError(f"{given[0]} is given, and nothing is searched; give search too, or leave it out")
        if self.caption_column is not None and (self.attacks or self.suite == "quick"):
            what = "attacks are named" if self.attacks else "suite quick has no attack with captions"
            raise UserError(f"caption_column is given, and {what}; write dreambooth:caption_column=... into attacks")
        for name in ("search", "known_before"):
            if getattr(self, name) and self.hardened is None:
                raise UserError(f"{name} compares a hardened model with its base: give hardened, or leave {name} out")

    @property
    def audit(self) -> AuditOptions:
        """The options of the audit, under the name that they have in other jobs."""
        return self

    @staticmethod
    def defaults_from(given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults of an audit of photos that the run which protected them gives; see `photo_run`."""
        return defaults_from_run(given)
