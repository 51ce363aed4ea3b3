"""The YAML file that `apdm init` writes: starting values for a kind of model, with a comment beside each option.

The values are those of configs/, with the pool of attackers that gave the delay on the miniature world. The comments
are the beginnings of the options' own help texts.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from apdm.config.commands.harden import HardenConfig
from apdm.config.commands.perturb import PerturbConfig
from apdm.config.groups.image_layer import NO_METHOD
from apdm.config.groups.presets import MEMORY_PRESETS
from apdm.config.help import brief
from apdm.config.options import options_by_path
from apdm.config.yaml_text import read_yaml, yaml_value
from apdm.core.errors import UserError
from apdm.portraits import DEMO

Make = Literal["model", "photos", "both"]
WIDTH = 120  # of the lines
COLUMN = 40  # of the comments
SHORTEST = 45  # a comment with less room stands above its option
NO_FACES, BUNDLED, OTHER = "none", "bundled", "other"  # answers
PEOPLE = ("benign", "_data_dir", "faceid_adapter", "show_photos", "validation.")  # of the demo, not of its model
POOL: Mapping[str, Any] = {"l2p.lora_share": 1.0, "l2p.lora_rank": 32, "l2p.lora_target": "all", "pool.size": 4}
DLADIFF: Mapping[str, Any] = {
    "image_layer.batch_size": 2,
    "image_layer.dladiff.static_steps": 400,
    "image_layer.dladiff.rounds": 20,
    "image_layer.dladiff.learning_rate": 5e-6,
}
# {option: comment} where the file is about something else than the option's help says.
COMMENTS = {
    "pretrained_model_name_or_path": "A folder, a single file or a name on the Hub",
    "instance_data_dir": "One folder for each person, named by an opaque id: s01/*.jpg",
    "instance_prompt": "What an attacker writes, with a rare word that stands for the person",
    "class_prompt": "The same without the rare word",
    "faces": "They find faces and judge likeness; the first is misled in protected photos",
    "ema_decay": "Exports a running average of theta over the last 1 / (1 - ema_decay) outer steps",
    "l2p.lora_share": "1: simulated attackers train a LoRA, which takes less memory; 0 is the paper's",
    "pool.size": "Attackers that live on over outer steps; the paper has none, 0",
    "preservation.weight": "Weight of the loss that keeps the class; 1 is the paper's",
    "audit.enabled": "Attacks base and hardened model afterwards, and gives a verdict",
    "audit.min_cost_factor": "Protected only if the attack takes this many times as many steps",
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the starting values depend on in a model.

    Attributes:
        name: the kind of model, in words.
        cards: the cards on which hardening fits, by count.
        photo_cards: those on which photos can be protected.
        audit_cards: those on which the audit fits.
        fine_tuning_cards: those on which photos can be protected against fine-tuning.
        values: {option: value} of `apdm harden`; those that `apdm perturb` has too go into its file as well.
        miniature: whether it is the bundled world's.
    """

    name: str
    cards: Sequence[str]
    photo_cards: Sequence[str]
    audit_cards: Sequence[str]
    fine_tuning_cards: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    miniature: bool = False


def _values(*, resolution: int, steps: int, guidance: float, batch: int, inner: int = 20) -> dict[str, Any]:
    return {
        "instance_prompt": "a photo of sks person",
        "class_prompt": "a photo of person",
        "resolution": resolution,
        "num_class_images": 200,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "sample_batch_size": batch,
        "max_train_steps": 800,
        "train_batch_size": 1,
        "learning_rate": 5e-6,
        "l2p.inner_steps": inner,
        "l2p.learning_rate": 5e-6,
        **POOL,
        "preservation.anchor_weight": 0.0,
        "audit.learning_rate": 5e-6,
        "audit.nominal_step": 800,
        "audit.max_train_steps": 4000,
        "audit.gradient_checkpointing": True,
        "audit.seeds": 3,
    }


ALL, LARGE = ("24gb", "48gb", "80gb", OTHER), ("48gb", "80gb", OTHER)
SD: Mapping[str, Any] = {"cards": ALL, "photo_cards": ALL, "audit_cards": ALL, "fine_tuning_cards": LARGE}
LARGE_SD: Mapping[str, Any] = {"cards": LARGE, "photo_cards": ALL, "audit_cards": ("80gb", OTHER)}
SDXL_AUDIT = {"audit.num_inference_steps": 30, "audit.guidance_scale": 5.0}
SD3_AUDIT = {"audit.num_inference_steps": 28, "audit.guidance_scale": 7.0}
# For a model that only several cards have room for.
SHARDED: Mapping[str, Any] = {"cards": (OTHER,), "photo_cards": (OTHER,), "audit_cards": ()}
SHARDED_VALUES: dict[str, Any] = {
    **dict.fromkeys(POOL),
    "train_batch_size": 8,
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
}
KINDS: Mapping[str, Kind] = {
    "sd15": Kind(name="Stable Diffusion 1", values=_values(resolution=512, steps=50, guidance=7.5, batch=4), **SD),
    "sd21": Kind(
        name="Stable Diffusion 2", values=_values(resolution=512, steps=50, guidance=7.5, batch=4, inner=10), **SD
    ),
    "sdxl": Kind(
        name="Stable Diffusion XL",
        values=_values(resolution=1024, steps=30, guidance=5.0, batch=1) | SDXL_AUDIT,
        **LARGE_SD,
    ),
    "sd3": Kind(
        name="Stable Diffusion 3",
        values=_values(resolution=1024, steps=28, guidance=7.0, batch=1) | SD3_AUDIT,
        **LARGE_SD,
    ),
    "flux": Kind(
        name="FLUX.1",
        values=_values(resolution=1024, steps=28, guidance=3.5, batch=1) | SHARDED_VALUES,
        **SHARDED,
    ),
    # The smaller size, 4B; the larger one takes more cards, see LARGER.
    "flux2": Kind(
        name="FLUX.2 [klein]",
        cards=("80gb", OTHER),
        photo_cards=LARGE,
        audit_cards=(),
        values=_values(resolution=1024, steps=50, guidance=4.0, batch=1) | {"mixed_precision": "bf16"},
    ),
    "zimage": Kind(
        name="Z-Image",
        values=_values(resolution=1024, steps=50, guidance=5.0, batch=1) | SHARDED_VALUES,
        **SHARDED,
    ),
}
LARGER: Mapping[str, Any] = {"cards": (OTHER,), "photo_cards": ("80gb", OTHER)}  # of FLUX.2 [klein] 9B
UNGUIDED: Mapping[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0}  # of its distilled models
# Names on the Hub whose kind is known without asking it, with options that their files need.
ON_THE_HUB: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("sd15", {}),
    "stabilityai/stable-diffusion-2-1-base": ("sd21", {}),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", {"variant": "fp16"}),
    "stabilityai/stable-diffusion-3.5-medium": ("sd3", {}),
    "stabilityai/stable-diffusion-3-medium-diffusers": ("sd3", {}),
    "black-forest-labs/FLUX.1-dev": ("flux", {}),
    "black-forest-labs/FLUX.1-schnell": ("flux", {"num_inference_steps": 4, "guidance_scale": 0.0}),
    "black-forest-labs/FLUX.2-klein-base-4B": ("flux2", {}),
    "black-forest-labs/FLUX.2-klein-4B": ("flux2", UNGUIDED),
    "Tongyi-MAI/Z-Image": ("zimage", {}),
    "Tongyi-MAI/Z-Image-Turbo": ("zimage", {"num_inference_steps": 8, "guidance_scale": 0.0}),
}


def miniature_kind() -> Kind:
    """Return the kind of the bundled model, with the values of `apdm demo`."""
    flat = dict(_flat(read_yaml(str(DEMO))))
    return Kind(
        name="the bundled miniature model",
        cards=ALL,
        photo_cards=ALL,
        audit_cards=ALL,
        fine_tuning_cards=ALL,
        values={path: value for path, value in flat.items() if not any(part in path for part in PEOPLE)},
        miniature=True,
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs


def check_card(kind: Kind, make: Make, card: str) -> None:
    """Raise UserError if the job does not fit a card, by the count of memory."""
    fitting = kind.photo_cards if make == "photos" else kind.cards
    if card not in fitting:
        job = "protecting photos with" if make == "photos" else "hardening"
        raise UserError(
            f"card is {card}, and {job} {kind.name} does not fit it by the count of memory; choose {_either(fitting)}"
        )


def check_faces(kind: Kind, make: Make, card: str, faces: Sequence[str]) -> None:
    """Raise UserError if the answer about faces has another form, or leaves nothing that photos are protected against.

    Whether the networks exist and fit the model is checked elsewhere.
    """
    alone = [word for word in faces if word in (NO_FACES, BUNDLED)]
    if alone and len(faces) > 1:
        raise UserError(f"faces names {alone[0]} beside other networks; give {alone[0]} alone, or leave it out")
    if make != "model" and NO_FACES in faces and card not in kind.fine_tuning_cards:
        able = f", or card {_either(kind.fine_tuning_cards)}" if kind.fine_tuning_cards else ""
        raise UserError(
            f"faces is none, and with {kind.name} on card {card} photos can be protected only against face "
            f"recognisers; name them with faces{able}, or make a model"
        )


def _either(cards: Sequence[str]) -> str:
    return " or ".join(cards)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a user answered, and what was found out about the model.

    Attributes:
        make: what to make.
        model: the model's path or name.
        kind: its kind.
        found: {option: value} that its files ask for, such as the variant and the resolution.
        photos: the folder of photos.
        card: the card.
        faces: the networks for faces; or `NO_FACES` or `BUNDLED` alone.
        output_dir: the output folder of the job.
        allow_pickle: whether the job may load pickles.
    """

    make: Make
    model: str
    kind: Kind
    found: Mapping[str, Any]
    photos: str
    card: str
    faces: Sequence[str]
    output_dir: str
    allow_pickle: bool = False

    @property
    def command(self) -> str:
        """The command that takes the file."""
        return "perturb" if self.make == "photos" else "harden"

    @property
    def config_class(self) -> type[HardenConfig] | type[PerturbConfig]:
        """The options of this command."""
        return PerturbConfig if self.make == "photos" else HardenConfig


def starting_values(answers: Answers) -> dict[str, Any]:
    """Return {dotted option: value} of the file, in its order."""
    kind, card = answers.kind, answers.card
    judged = NO_FACES not in answers.faces
    named = judged and BUNDLED not in answers.faces
    first = {
        "pretrained_model_name_or_path": answers.model,
        **answers.found,
        "allow_pickle": answers.allow_pickle or None,
        "instance_data_dir": answers.photos,
        "output_dir": answers.output_dir,
        "preset": card if card in MEMORY_PRESETS and not kind.miniature else None,
        "faces": list(answers.faces) if named else None,
    }
    protects, hardens = answers.make != "model", answers.make != "photos"
    last: dict[str, Any] = {"image_layer.enabled": protects} if hardens else {}
    if protects:
        last |= _photo_values(answers, judged)
    audited = hardens and judged and card in kind.audit_cards
    if hardens:
        last["audit.enabled"] = audited
    given = {
        path: value
        for path, value in kind.values.items()
        if (audited or not path.startswith("audit.")) and (protects or not path.startswith("image_layer."))
    }
    values = {path: value for path, value in (first | given | first | last).items() if value is not None}
    return {path: values[path] for path in _in_order(values, [*options_by_path(answers.config_class)])}


def _photo_values(answers: Answers, judged: bool) -> dict[str, Any]:
    against_tuning = answers.card in answers.kind.fine_tuning_cards
    values: dict[str, Any] = {"image_layer.method": "dladiff" if against_tuning else NO_METHOD}
    values |= DLADIFF if against_tuning and not answers.kind.miniature else {}
    return values if judged else values | {"image_layer.zero_shot.enabled": False}


def _in_order(paths: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """The options that are known, those of groups last: a group stands together, and whether it is used comes first."""
    groups = {group: place for place, path in reversed([*enumerate(known)]) for group in [path.rpartition(".")[0]]}

    def place(path: str) -> tuple[int, bool, int]:
        group = path.rpartition(".")[0]
        return (groups[group], not path.endswith(".enabled"), known.index(path)) if group else (-1, False, 0)

    return sorted(filter(known.__contains__, paths), key=place)


def _groups(path: str) -> list[str]:
    parts = path.split(".")[:-1]
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def starting_file(answers: Answers, *, file: str) -> str:
    """Return the text of the file.

    Args:
        file: the file's name, for the commands that its first lines show.
    """
    known, values = options_by_path(answers.config_class), starting_values(answers)
    lines = [*_heading(answers, file), ""]
    open_groups: list[str] = []
    for path, value in values.items():
        groups = _groups(path)
        for group in groups[_shared(groups, open_groups) :]:
            depth = group.count(".")
            lines += [""] * (depth == 0) + [f"{'  ' * depth}{group.rpartition('.')[2]}:"]
        open_groups = groups
        comment = COMMENTS.get(path)
        lines += _line(path, value, comment or known[path].help, whole=comment is not None)
    if values.get("audit.enabled") and not answers.kind.miniature:
        lines.append("  # Without a network that shows whether the class changed, no protection is claimed:")
        lines.append("  # judge: [dino:facebook/dinov2-small]")
    return "\n".join(lines) + "\n"


def _heading(answers: Answers, file: str) -> list[str]:
    made = {"model": "a hardened model", "photos": "protected photos", "both": "a hardened model and protected photos"}
    launch, file = f"apdm {answers.command}", shlex.quote(file)
    lines = [
        f"# {made[answers.make]}, with {answers.kind.name}".replace("# a", "# A").replace("# p", "# P"),
        f"#   {launch} --config {file} --dry_run    checks everything and prints the plan",
        f"#   {launch} --config {file}              does it",
        "# Written by apdm init. The command line wins over this file; paths are from the folder of the command.",
        f"# The beginning of each option's help stands beside it; apdm {answers.command} --help-all has the rest.",
    ]
    if answers.command == "harden" and not answers.kind.audit_cards:
        lines.append("# No single card has room for this model: accelerate launch with FSDP2, see docs/scaling.md.")
    elif answers.command == "harden" and NO_FACES in answers.faces:
        lines.append("# There is no audit, because no networks for faces were named.")
    elif answers.command == "harden" and answers.card not in answers.kind.audit_cards:
        lines.append(f"# There is no audit, because by count it does not fit a card of {answers.card}.")
    return lines


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many groups two paths have in common, from the outermost on."""
    return sum(a == b for a, b in zip(one, other, strict=False))


def _line(path: str, value: Any, comment: str, *, whole: bool) -> list[str]:
    """One option with its comment, which stands above it if there is little room beside it."""
    indent = "  " * path.count(".")
    text = f"{indent}{path.rpartition('.')[2]}: {yaml_value(value)}"
    start = max(len(text) + 2, COLUMN)
    room = WIDTH - start - 2
    above = room < (len(comment) if whole else SHORTEST)
    room = WIDTH - len(indent) - 2 if above else room
    shown = "# " + (comment if whole else brief(comment, room))
    return [indent + shown, text] if above else [text.ljust(start) + shown]
