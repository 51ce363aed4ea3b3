"""Makes the attacks of an audit from their specs, and says whether they can run on a model, before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apdm.attacks import Attack
from apdm.attacks.drawing import Drawing
from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.photo_treatment import PhotoTreatment
from apdm.attacks.purify import check_purifier
from apdm.attacks.registry import is_zero_shot, make, make_zero_shot, settings
from apdm.attacks.staged import Staged, stages
from apdm.audit.inputs.untrained import Untrained
from apdm.config import AuditOptions
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.fit import check_steps
from apdm.families.prompts import check_distinct

DENOISER_ATTACKS = ("dreambooth", "adaptive")  # these train the whole denoiser, with the audit's own rate and steps


@dataclass(frozen=True)
class AttackFactory:
    """Makes attacks from their specs.

    Attacks that train the whole denoiser take the rate, steps, batch size and prior weight of the nominal attack, which
    `options` describe. All other attacks have defaults of their own. The option `attack_options`, texts such as
    "lora:learning_rate=1e-3", changes the defaults of an attack.
    """

    options: AuditOptions
    instance_prompt: str
    class_prompt: str

    @property
    def nominal_step(self) -> int:
        """Steps of the nominal attack."""
        return self.options.nominal_step or self.options.max_train_steps

    def make(self, spec: str, *, seed: int) -> Attack:
        """Make the attack that `spec` names.

        Raises:
            UserError: there is no such attack, it has no such option, or it does not fit the prompts.
        """
        if is_zero_shot(spec):
            return self._untrained(spec, seed)
        copied = ("learning_rate", "train_batch_size", "prior_loss_weight", "gradient_checkpointing")
        nominal = {name: getattr(self.options, name) for name in copied} | {"max_train_steps": self.nominal_step}
        by_attack: dict[str, dict[str, Any]] = {name: dict(nominal) for name in DENOISER_ATTACKS}
        for name, values in settings(self.options.attack_options).items():
            by_attack[name] = by_attack.get(name, {}) | values
        prompts = {"instance_prompt": self.instance_prompt, "class_prompt": self.class_prompt}
        return make(spec, by_attack=by_attack, seed=seed, **prompts)

    def _untrained(self, spec: str, seed: int) -> Attack:
        common: dict[str, Any] = {
            "instance_prompt": self.instance_prompt,
            "class_prompt": self.class_prompt,
            "seed": seed,
        }
        if spec.partition(":")[0] != FaceIDAdapter.name:
            return Untrained(zero_shot=make_zero_shot(spec), adapter={}, **common)
        if ":" in spec:
            raise UserError(f'"{spec}": {FaceIDAdapter.name} takes no options; write {FaceIDAdapter.name} alone')
        adapter = _adapter_named(self.options)
        if adapter is None:
            raise UserError(f"{spec} draws with an adapter that somebody trained; name its file with faceid_adapter")
        return Untrained(zero_shot=None, adapter=adapter, **common)


def _adapter_named(options: AuditOptions) -> dict[str, object] | None:
    """What the results say of the adapter that options name; None if they name none."""
    if options.faceid_adapter is None:
        return None
    files = {"adapter": options.faceid_adapter, "controlnet": options.faceid_controlnet}
    named: dict[str, object] = {name: Path(file).name for name, file in files.items() if file is not None}
    return named | ({"encoder": options.faceid_encoder} if options.faceid_encoder else {})


def lengthened(attack: Any, factor: float) -> Any:
    """The same attack, which goes on to `factor` times its steps; one without `max_train_steps` stays as it is."""
    if isinstance(attack, Staged):
        return dataclasses.replace(attack, attack=lengthened(attack.attack, factor))
    if not any(field.name == "max_train_steps" for field in dataclasses.fields(attack)):
        return attack
    steps = round(attack.max_train_steps * factor)
    if isinstance(attack, FineTuning):
        return attack.with_steps(steps)
    return dataclasses.replace(attack, max_train_steps=steps)


# -- whether an attack fits a model -----------------------------------------------------------------------------


def check_fits(attack: Attack, base: Family) -> None:
    """Check that a model has what an attack trains, and can draw as it draws.

    Raises:
        UserError: it has not, or cannot.
    """
    if isinstance(attack, Untrained):
        attack.check_fits(base)
        return
    for stage in stages(attack):
        if isinstance(stage, Staged):
            stage.drawn(base, base)
        if isinstance(stage, PhotoTreatment):
            check_purifier(stage.purifier, base)
        if isinstance(stage, FineTuning):
            stage.check_fits(base)


@contextmanager
def named(spec: str) -> Iterator[None]:
    """Put the attack, as the user named it, in front of a UserError's message, unless the message begins with it."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(spec.partition(":")[0]):
            raise
        raise UserError(f"{spec}: {error}") from None


def check_on_model(spec: str, attack: Attack, base: Family, num_inference_steps: int) -> None:
    """Check, before any work, that an attack can run on a model.

    Args:
        spec: how the user named the attack, for messages.
        num_inference_steps: sampling steps of the pictures.

    Raises:
        UserError: the attack does not fit the model, its prompt says nothing that the class prompt does not say, an
            attack that edits photos does nothing in so many sampling steps, or the attack's own sampler takes fewer.
    """
    with named(spec):
        check_fits(attack, base)  # first: options are not worth mending if the attack does not fit the model
    if isinstance(attack, Untrained):
        attack.check_steps(num_inference_steps)
    for stage in stages(attack):
        if isinstance(stage, Drawing) and stage.num_inference_steps is None:
            check_steps(stage.drawn(base, base), {f"{spec}: num_inference_steps": num_inference_steps})
    last = stages(attack)[-1]
    if isinstance(last, FineTuning):
        check_distinct(base, f"{spec}: instance_prompt", last.instance_prompt, last.class_prompt)


def misfit(attack: Attack, base: Family) -> str | None:
    """Why an attack does not fit a model; None if it fits."""
    try:
        check_fits(attack, base)
    except UserError as error:
        return str(error)
    return None
