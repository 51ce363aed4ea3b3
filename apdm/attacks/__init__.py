"""Attacks: what somebody does with a published model and photos of a person in order to draw that person.

There are three kinds, and each kind has a protocol in this file:

* An `Attack` personalises a model. Most attacks train: they derive from `FineTuning` (`apdm/attacks/fine_tuning.py`)
  and say in `begin` which parameters are trained. Attacks that first change the model or the photos and then run
  another attack derive from `Staged` (`apdm/attacks/staged.py`).
* A `Purifier` changes photos in order to remove a protection from them.
* A `ZeroShot` attack draws a person from photos without any training.

Every attack is a frozen dataclass in this package whose fields are its options. `apdm.attacks.registry` finds an attack
by its name and makes it from text such as `lora:rank=32`. To understand an attack, read `fine_tuning` first.

What attacks derive from:

fine_tuning                  attacks that train: the random numbers, the training loop, the loss
staged                       attacks that first change the model or the photos, and then run another attack
editing                      attacks that edit a photo without training; image to image, and inpainting
registry, parts              finds attacks by name; what attacks are made of

Attacks that train on a person:

dreambooth, lora, textual_inversion, custom_diffusion   as published
adaptive                     trains against the hardening
experts, drawing             draw with two models; draw in another way

Attacks in stages:

two_stage, kick_and_settle, stranger_first, rebalance   first shake the hardened weights
restoration, transfer        use other public weights
encoder_lora                 trains the VAE to see through photo protections
photo_treatment              trains on photos that a purifier changed

Without training, and on photos alone:

faceid                       draws a person from one photo
diffedit, masactrl           edit a photo
purify, mixed_photos         remove a protection; put clean photos among the protected ones
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from apdm.data.edit_prompts import Edit
from apdm.families import Family, Posterior

Evaluate = Callable[[int, Family], None]  # (number of steps done, the attacked model in its present state)
Callback = Callable[[int, Tensor], None]  # (number of steps done, loss of the last step, still on its device)


@dataclass(frozen=True)
class Material:
    """Everything that the attacker has besides the model under attack.

    Attributes:
        instance: latents of the subject's photos, encoded by the VAE of the model under attack.
        class_images: latents of class pictures, for prior preservation.
        photos: the subject's photos, `[N, 3, R, R]` in [-1, 1]. Attacks that work on pixels need them.
        models: other published models. The keys are "base" (the weights before hardening), "hardened", "sibling"
            (another fine-tune of the base) and "hardened_sibling" (the sibling, hardened for other people).
        consenting: latents of photos of people who have nothing to do with the subject.
        adapter: an attack without training that somebody else trained, such as `FaceIDAdapter`.
        edits: what is asked of each photo, for attacks that edit photos; None asks for the audit's prompts.
        captions: {column: a caption of each photo}, for attacks with `caption_column`. They describe people, so they
            never enter logs and results.
    """

    instance: Posterior
    class_images: Posterior | None = None
    photos: Tensor | None = None
    models: Mapping[str, Family] = field(default_factory=dict)
    consenting: Posterior | None = None
    adapter: ZeroShot | None = None
    edits: Sequence[Edit] | None = None
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)


class AttackResult(NamedTuple):
    """The result of an attack.

    Attributes:
        model: the attacker's own model. It shares every part that the attack did not change with the attacked model.
        losses: the loss of every training step.
    """

    model: Family
    losses: list[float]


class Attack(Protocol):
    """An attack that personalises a model with photos of a subject.

    With equal seeds an attack uses the same random numbers on every model, so the runs on the base model and on the
    hardened model can be compared pair by pair.
    """

    @property
    def name(self) -> str:
        """The name under which the registry and the results know the attack."""
        ...

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of `Material.models` without which the attack cannot run."""
        ...

    @property
    def max_train_steps(self) -> int:
        """The number of training steps."""
        ...

    @property
    def preparing_samples(self) -> int:
        """The pictures that the attack trains on before its first step, counted once per step of that training."""
        ...

    @property
    def instance_prompt(self) -> str:
        """The prompt that the attacker trains the subject's photos with."""
        ...

    def params(self) -> dict[str, object]:
        """The attack's options as they stand in results.json, without the seed, which has its own place there."""
        ...

    def prompt(self, asked: str) -> str:
        """Write a prompt of the audit with the identifier and the class noun of this attacker."""
        ...

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> AttackResult:
        """Attack a copy of `model`, which is only read. `FineTuning.run` explains the arguments."""
        ...


class Purifier(Protocol):
    """A change to photos that may remove their protection. With equal seeds it uses the same random numbers."""

    @property
    def name(self) -> str:
        """The name under which the registry and the results know the purifier."""
        ...

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        ...

    def params(self) -> dict[str, object]:
        """The purifier's options as they stand in results.json."""
        ...

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Return the changed photos.

        Args:
            photos: `[N, 3, H, W]` in [0, 1].
            model: the attacker's model. It is only read.
            seed: seed of the purifier's random numbers.

        Returns:
            Photos of the same shape in [0, 1].
        """
        ...


class ZeroShot(Protocol):
    """An attack that draws a person from photos and prompts without any training."""

    @property
    def name(self) -> str:
        """The name under which the registry and the results know the attack."""
        ...

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        ...

    def params(self) -> dict[str, object]:
        """The attack's options as they stand in results.json."""
        ...

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """Draw one picture for each prompt.

        Args:
            model: the model that draws. It is only read.
            photos: N photos of the person, `[N, 3, H, W]` in [0, 1]. An attack that takes a single photo uses photo
                i modulo N for picture i.
            prompts: B prompts.
            options: as in `Family.sample`.

        Returns:
            Pictures `[B, 3, H, W]` in [0, 1].
        """
        ...
