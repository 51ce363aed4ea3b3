"""`apdm init`: five questions, each answer checked as the jobs check it, and a YAML file with comments."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import hf_hub_download

from apdm.config import HardenConfig, InitConfig, PerturbConfig, make_config
from apdm.config.commands.init import QUESTIONS
from apdm.config.options import options_by_path, without_none
from apdm.config.starting_file import (
    BUNDLED,
    KINDS,
    LARGER,
    NO_FACES,
    ON_THE_HUB,
    OTHER,
    UNGUIDED,
    Answers,
    Kind,
    check_card,
    check_faces,
    miniature_kind,
    starting_file,
)
from apdm.config.yaml_text import parse_yaml
from apdm.core.errors import Faults, UserError, UserErrors, first_line
from apdm.core.files import check_output_dir, write_text
from apdm.core.logging import get_logger
from apdm.core.model_path import INDEX, local_model
from apdm.data.subjects import find_subjects
from apdm.faces import FaceChoice, FaceNetworks
from apdm.families.load import check_pipeline, families_by_pipeline
from apdm.families.miniature import is_miniature
from apdm.families.pipeline_folder import stored_variants
from apdm.families.single_file.read import look_at_single_file
from apdm.jobs.common.first_checks import check_given, has_only_begun
from apdm.jobs.env_machine import SLACK, accelerator_memory
from apdm.jobs.hardening.final_audit import learnt_photos

logger = get_logger(__name__)

Ask = Callable[[str], str]
# {question: (its words, what is taken if the answer is empty)}
WORDS: Mapping[str, tuple[str, str]] = {
    "make": ("What is made: a hardened model, protected photos, or both (model, photos, both)", "both"),
    "model": (
        "Which model: a name on the Hugging Face Hub, a folder or a single file",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "photos": ("Where are the photos: a folder with one folder for each person", "subjects"),
    "card": ("Which graphics card (24gb, 48gb, 80gb, other)", OTHER),
    "faces": (
        "Which networks for faces: an InsightFace pack, then perhaps further recognisers, PATH=THRESHOLD; or none",
        NO_FACES,
    ),
}
# {pipeline class: kind}; version 2 of Stable Diffusion has the class of version 1 and wider text embeddings.
KIND_OF_CLASS = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "Flux2KleinPipeline": "flux2",
    "ZImagePipeline": "zimage",
}
WIDTH_OF_SD21 = 1024
HEADS_OF_KLEIN_4B = 24


@dataclass(frozen=True)
class InitResult:
    """What was written.

    Attributes:
        file: the YAML file.
        command: the command that takes it.
    """

    file: Path
    command: str


def init(config: InitConfig, ask: Ask | None = None) -> InitResult:
    """Ask what the options do not say, and write the file. `apdm init` runs this function.

    Args:
        config: the options. Those that are given are not asked.
        ask: puts a question and returns the answer; None if nobody can be asked. A wrong answer is told, and the
            question is put again.

    Raises:
        UserError: an answer is missing and nobody can be asked, a given answer is wrong, or the file is there.
    """
    output = Path(config.output)
    _check_place(output, overwrite=config.overwrite)
    if ask is None:
        given = _given(config)
    else:
        given = _Answering(config)
        _ask_all(given, ask)
    answers = given.answers()
    text = starting_file(answers, file=config.output)
    try:
        _check_all(answers, text)
        _write(output, text)
    except UserError:
        given.tell_answers()
        raise
    return InitResult(output, answers.command)


def _ask_all(given: _Answering, ask: Ask) -> None:
    """Put all questions that the options leave open. If that ends early, the answers so far are told."""
    try:
        for number, name in enumerate(QUESTIONS, start=1):
            given.find(name, partial(_put, ask, number, name, given))
            if name == "make":
                given.check_output_dir()
    except (UserError, KeyboardInterrupt):
        given.tell_answers()
        raise


def _write(output: Path, text: str) -> None:
    """Write the file. Raises UserError if that is not possible."""
    try:
        write_text(output, text)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); name another file with --output") from None


def _check_place(output: Path, *, overwrite: bool) -> None:
    """Raise UserError if the file may not be written."""
    if output.is_dir() or not output.parent.is_dir():
        problem = "is a folder" if output.is_dir() else "lies in a folder that does not exist"
        raise UserError(f"{output} {problem}; name a file to write with --output")
    if output.exists() and not overwrite:
        raise UserError(f"{output} is there already; name another file with --output, or give --overwrite true")


class _Answering:
    """The answers so far. Each is checked when it is given, against those before it.

    Args:
        config: the options; those that are given are answers.
    """

    def __init__(self, config: InitConfig) -> None:
        self.config = config
        self.known: dict[str, Any] = {}
        self.found: dict[str, Any] = {}
        self.kind: Kind = KINDS["sd15"]

    def find(self, name: str, put: Callable[[], str]) -> None:
        """Take one answer from the options, or put the question until an answer is right."""
        given = getattr(self.config, name)
        if given not in (None, []):
            self.take(name, given)
            return
        while name not in self.known:
            words = put()
            try:
                self.take(name, _read(name, words))
            except ValueError as error:
                logger.error("error: %s: %s", words, error)
            except UserError as error:
                for one in error.errors if isinstance(error, UserErrors) else [error]:
                    logger.error("error: %s", one)

    def take(self, name: str, value: Any) -> None:
        """Keep an answer. Raises UserError if it is wrong."""
        match name:
            case "model":
                config = self.config
                self.kind, self.found = look_at_model(
                    value, config.single_file_config, allow_pickle=config.allow_pickle
                )
            case "photos":
                find_subjects(value)
            case "card":
                check_card(self.kind, self.known["make"], value)
            case "faces":
                self._check_faces(value)
        self.known[name] = value

    def _check_faces(self, faces: list[str]) -> None:
        known = self.known
        check_faces(self.kind, known["make"], known["card"], faces)
        if NO_FACES not in faces:
            named = [spec for spec in faces if spec != BUNDLED]
            choice = FaceChoice(faces=named, allow_pickle=self.config.allow_pickle)
            choice.check_world(known["model"], miniature=self.kind.miniature)

    def answers(self) -> Answers:
        """All answers together."""
        return Answers(
            **self.known,
            kind=self.kind,
            found=self.found,
            output_dir=self.output_dir,
            allow_pickle=self.config.allow_pickle,
        )

    @property
    def output_dir(self) -> str:
        """The output folder of the job. What is made must be known."""
        made = "protected" if self.known["make"] == "photos" else "hardened"
        return self.config.output_dir or f"outputs/{made}"

    def check_output_dir(self) -> None:
        """Raise UserError if the output folder is taken, so that nobody answers further questions for nothing."""
        try:
            may_replace = self.known["make"] == "photos" or has_only_begun(Path(self.output_dir))
            check_output_dir(self.output_dir, overwrite=may_replace)
        except UserError as error:
            raise UserError(f"{error}; apdm init takes its name from --output_dir") from None

    def tell_answers(self) -> None:
        """Say with which command the answers so far need not be given again."""
        standard = {field.name: field.default for field in fields(self.config)}
        options = {name: value for name, value in vars(self.config).items() if value not in (standard[name], [])}
        words = ["apdm", "init"]
        for name, value in (options | self.known).items():
            words += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
        if self.known:
            logger.warning("with the answers so far: %s", shlex.join(words))


def _read(name: str, words: str) -> Any:
    """Return the value of an answer. Raises UserError or ValueError if it has none."""
    option = options_by_path(InitConfig)[name]
    choices = [choice for choice in get_args(without_none(option.kind)) if option.kind != list[str]]
    if choices and words not in choices:
        raise UserError(f"this is no answer; it needs one of {', '.join(choices)}")
    texts = shlex.split(words) if option.kind == list[str] else [words]
    value = option.fit(option.parse(texts), "in the answer")
    if value is None:
        raise UserError("this names nothing; give a name, or press Enter for what stands in brackets")
    return value


def _given(config: InitConfig) -> _Answering:
    """The answers of the options alone.

    Raises:
        UserError: answers are missing or wrong. All such mistakes are told, unless one follows from another.
    """
    given = _Answering(config)
    missing = [name for name in QUESTIONS if getattr(config, name) in (None, [])]
    with Faults() as faults:
        if missing:
            options = ", ".join(f"--{name}" for name in missing)
            faults.add(UserError(f"{options} must be given: there is no terminal to ask on"))
        for name in QUESTIONS:
            if name not in missing and (name not in ("card", "faces") or not (missing or faults.found)):
                faults.of(partial(given.take, name, getattr(config, name)))
        if "make" in given.known and "photos" in given.known:
            faults.of(given.check_output_dir)
    return given


def _put(ask: Ask, number: int, name: str, given: _Answering) -> str:
    """Put one question and return the answer, or what an empty one stands for."""
    words, default = WORDS[name]
    if given.kind.miniature:
        default = {"faces": BUNDLED, "card": OTHER}.get(name, default)
    elif name == "card":
        default = _card_here()
    answer = ask(f"{number}/{len(QUESTIONS)} {words} [{default}]: ").strip()
    return answer or default


def _card_here() -> str:
    """The largest card of the presets that this machine's accelerator reaches; other if there is none."""
    memory = accelerator_memory() or 0
    fitting = [card for card in ("24gb", "48gb", "80gb") if memory >= SLACK * int(card.removesuffix("gb")) * 10**9]
    return fitting[-1] if fitting else OTHER


def look_at_model(
    model: str, single_file_config: str | None, *, allow_pickle: bool = False
) -> tuple[Kind, dict[str, Any]]:
    """Check a model as the jobs do before they read its weights, and say of which kind it is.

    Of a name on the Hub, only its small configuration files are read, unless it is well known.

    Returns:
        The kind, and {option: value} that its files ask for.

    Raises:
        UserError: it is no model of a known family, or nothing is known about it.
    """
    place = local_model(model)
    if place is None and model in ON_THE_HUB:
        name, found = ON_THE_HUB[model]
        return KINDS[name], dict(found)
    found = {}
    if place is not None and place.is_file():
        if single_file_config is None:
            raise UserError(
                f"{model} is a single file; name the folder with its configurations with --single_file_config"
            )
        variant = _only_variant(Path(single_file_config)).get("variant")
        file = look_at_single_file(
            place, single_file_config, families_by_pipeline(), variant=variant, allow_pickle=allow_pickle
        )
        found["single_file_config"] = single_file_config
        found |= {} if file.variant is None else {"variant": file.variant}
    elif place is not None:
        found |= _only_variant(place)
        check_pipeline(place, variant=found.get("variant"), allow_pickle=allow_pickle)
    folder = model if place is None or place.is_dir() else str(single_file_config)
    if is_miniature(folder):
        return miniature_kind(), found
    return _kind_of(folder, found)


def _only_variant(folder: Path) -> dict[str, str]:
    """The variant of a pipeline folder that has no plain files, as an option; the first one, if there are several."""
    variants = stored_variants(folder)
    named = sorted(filter(None, variants))
    return {"variant": named[0]} if named and None not in variants else {}


def _kind_of(folder: str, found: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    """The kind of a pipeline in a folder or on the Hub, by its configuration files; and `found` with its resolution."""
    index = _configuration(folder, INDEX)
    pipeline = str(index.get("_class_name"))
    if pipeline not in KIND_OF_CLASS:
        known = ", ".join(families_by_pipeline())
        raise UserError(f"{folder} is a {pipeline}, for which there are no starting values; name one of {known}")
    name = KIND_OF_CLASS[pipeline]
    if name == "flux":
        return KINDS[name], found
    part = families_by_pipeline()[pipeline].denoiser_name
    denoiser, vae = _configuration(folder, f"{part}/config.json"), _configuration(folder, "vae/config.json")
    if name == "flux2":
        is_larger = denoiser.get("num_attention_heads") != HEADS_OF_KLEIN_4B
        kind = replace(KINDS[name], **LARGER) if is_larger else KINDS[name]
        return kind, found | dict(UNGUIDED if index.get("is_distilled") else {})
    if name == "sd15" and denoiser.get("cross_attention_dim") == WIDTH_OF_SD21:
        name = "sd21"
    side, blocks = denoiser.get("sample_size"), vae.get("block_out_channels")
    if isinstance(side, int) and isinstance(blocks, list):
        found["resolution"] = side * 2 ** (len(blocks) - 1)
    return KINDS[name], found


def _configuration(folder: str, name: str) -> dict[str, Any]:
    """One configuration file of a pipeline in a folder or on the Hub.

    Raises:
        UserError: it cannot be read.
    """
    try:
        path = Path(folder, name) if Path(folder).is_dir() else Path(hf_hub_download(folder, name))
        content = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # the Hub's library raises many kinds
        raise UserError(
            f"{folder}: {name} cannot be read ({first_line(error)}); name a folder of this machine, or check the name"
        ) from error
    return content if isinstance(content, dict) else {}


def _check_all(answers: Answers, text: str) -> None:
    """Check that the command takes the file, and that all that it names is there. Raises UserError otherwise."""
    config: Any = make_config(answers.config_class, parse_yaml(text))
    with Faults() as faults:
        faults.of(lambda: check_given(config))
        if isinstance(config, HardenConfig):
            faults.of(lambda: find_subjects(config.instance_data_dir, chosen=learnt_photos(config)))
    if config.faces:
        _check_networks(config)


def _check_networks(config: HardenConfig | PerturbConfig) -> None:
    """Check that the command can use the networks for faces: above all, that each has a threshold.

    Raises:
        UserError: it cannot use one of them.
    """
    networks = FaceNetworks(FaceChoice(faces=config.faces, allow_pickle=config.allow_pickle))
    with Faults() as faults:
        if config.protects_photos:
            faults.of(lambda: networks.targets)
        if isinstance(config, HardenConfig) and config.audit.enabled:
            faults.of(lambda: networks.encoders)
