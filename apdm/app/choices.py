"""What may be chosen in the page: how strong, by which method, in which format; and the words for it.

A choice ends in the options of `apdm perturb`, so that the same photos get the same bytes there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from apdm.config import PerturbConfig
from apdm.config.groups.image_layer import BUDGETS, MAX_EPSILON, NO_METHOD
from apdm.config.plugins import PROTECTIONS
from apdm.core.errors import UserError

OWN = "own"  # the strength whose budgets are set by the user
LEVELS = {"low": "Weak", "default": "Medium, as in DLADiff", "high": "Strong"}
METHODS = {
    "dladiff": "DLADiff: two copies of the model learn the photos, and the change works against both.",
    "anti_diffusion": "Anti-Diffusion: works against a copy of the model and its description of the photo.",
    "aspl": "ASPL (Anti-DreamBooth): a copy of the model learns while the photo changes.",
    "fsmg": "FSMG (Anti-DreamBooth): one copy of the model learns the photos first.",
    "disdiff": "DisDiff: as ASPL, and the word for the subject loses its place in the picture.",
    "pap": "PAP: works against the model under many prompts, without a copy.",
    "mist": "Mist: works against the model and against the part that reads pictures, without a copy.",
    "encoder": "Encoder: misleads only the part of the model that reads pictures.",
    "noise": "Noise: random noise, for comparison. It does not protect.",
    NO_METHOD: "None: only the faces are changed, against face recognisers.",
}
FORMATS = {"png": "PNG: keeps every pixel as it was made", "jpeg": "JPEG: smaller, but it changes pixels once more"}
MOST = round(255 * MAX_EPSILON)  # grey levels


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a user has chosen.

    Attributes:
        strength: one of `LEVELS`, or `OWN`.
        fine_tuning: with `OWN`, the budget of the fine-tuning layer in grey levels.
        zero_shot: with `OWN`, the budget of the zero-shot layer in grey levels.
        method: the protection against fine-tuning, as the option image_layer.method.
        faces: whether the zero-shot layer is used, which misleads face recognisers.
        format: "png" or "jpeg".
    """

    strength: str
    fine_tuning: int
    zero_shot: int
    method: str
    faces: bool
    format: str

    @staticmethod
    def of(config: PerturbConfig) -> Choice:
        """Return the choice that the options of the command stand for."""
        layer = config.image_layer
        own = layer.epsilon is not None or layer.zero_shot.epsilon is not None
        return Choice(
            strength=OWN if own else layer.preset,
            fine_tuning=round(255 * layer.fine_tuning_epsilon),
            zero_shot=round(255 * layer.zero_shot_epsilon),
            method=layer.method,
            faces=layer.zero_shot.enabled,
            format=layer.format,
        )

    @property
    def budgets(self) -> tuple[int, int]:
        """The budgets of the fine-tuning layer and of the zero-shot layer, in grey levels."""
        return (self.fine_tuning, self.zero_shot) if self.strength == OWN else BUDGETS[self.strength]

    def apply(self, config: PerturbConfig) -> PerturbConfig:
        """Return the options with this choice.

        Raises:
            UserError: nothing would be protected, or a value is not one that the page offers.
        """
        if not (self.strength == OWN or self.strength in LEVELS) or self.format not in FORMATS:
            raise UserError("this strength or format is none of those that the page offers; choose again")
        if self.method not in methods(config):
            raise UserError("this method is none of those that the page offers; choose again")
        if not all(1 <= levels <= MOST for levels in self.budgets):
            raise UserError(f"a strength is a whole number of grey levels from 1 to {MOST}")
        if self.method == NO_METHOD and not self.faces:
            raise UserError("without a method and without the faces nothing would be protected; choose one of them")
        layer = config.image_layer
        preset = layer.preset if self.strength == OWN else self.strength
        epsilons: tuple[float | None, float | None] = (None, None)
        if self.strength == OWN and self != Choice.of(config):
            epsilons = self.fine_tuning / 255, self.zero_shot / 255
        elif self.strength == OWN:  # exactly what the command was given
            epsilons = layer.epsilon, layer.zero_shot.epsilon
        zero_shot = replace(layer.zero_shot, enabled=self.faces, epsilon=epsilons[1])
        chosen = {"method": self.method, "preset": preset, "epsilon": epsilons[0], "format": self.format}
        return replace(config, image_layer=replace(layer, **chosen, zero_shot=zero_shot))  # type: ignore[arg-type]

    def text(self) -> str:
        """What the choice means, in one or two sentences."""
        first, second = self.budgets
        used = [first] * (self.method != NO_METHOD) + [second] * self.faces
        if not used:
            return "Nothing is chosen that would protect: choose a method, or the faces."
        most = max(used)
        parts = [f"Red, green and blue of a pixel go from 0 to 255. Each changes by at most {most}."]
        if len(used) == 2 and first != second:
            parts.append(
                f"The method may use {first} in the whole photo, the layer for faces {second} around the face."
            )
        if self.method == "noise" and not self.faces:
            parts.append("Random noise protects nothing. It shows what a change of this size looks like.")
        return " ".join(parts)


def strengths(*, faces: bool) -> list[tuple[str, str]]:
    """The strengths that the page offers: (text, value). `faces` says whether there is a layer for faces."""
    found = []
    for name, text in LEVELS.items():
        first, second = BUDGETS[name]
        steps = f"{first} and {second}" if faces else f"{first}"
        found.append((f"{text} ({steps} steps of 255)", name))
    return [*found, ("Set the steps yourself", OWN)]


def methods(config: PerturbConfig) -> dict[str, str]:
    """The methods that the page offers: {value: text}. A method that the command named with options comes first.

    Without a layer for faces something has to be chosen.
    """
    layer = config.image_layer
    given = layer.method
    name, _, options = given.partition(":")
    known = (one for one in (*METHODS, *PROTECTIONS.names()) if one != NO_METHOD or layer.zero_shot.enabled)
    found = {one: METHODS.get(one, one) for one in known}
    if given in found:
        return {given: found[given], **found}
    said = f"as the command says ({options})" if options else "as the command says"
    return {given: f"{METHODS.get(name, name).partition(':')[0]}: {said}", **found}
