"""The attacks and purifiers that an audit of protected photos runs: read from its options, and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from apdm.attacks import Attack
from apdm.attacks.editing import Editing
from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.mixed_photos import Mix
from apdm.attacks.parts.captions import caption_column
from apdm.attacks.photo_treatment import check_enough_photos
from apdm.attacks.purify import check_purifier
from apdm.attacks.registry import is_editing, is_zero_shot, make_purifier, make_zero_shot, refuse_repeats
from apdm.attacks.staged import needs_consenting
from apdm.audit.inputs.attack_factory import AttackFactory, check_on_model
from apdm.config import AuditOptions
from apdm.core.errors import Faults, UserError
from apdm.faces import FaceNetworks
from apdm.families import Family

NOMINAL_ATTACK, ADAPTER_ATTACK = "dreambooth", "faceid"


@dataclass(frozen=True, kw_only=True)
class PhotoAttackSpecs:
    """The attacks that run with the photos.

    Attributes:
        training: whether the nominal attack runs.
        adapter: the zero-shot adapter, which uses one photo for each seed; None leaves this attack out.
        attacks: specs of further attacks, see `apdm.attacks.registry`.
        purifiers: specs of purifiers. Every attack also runs on protected photos after each of them.
        edit_prompt: the prompt for attacks that edit photos; None takes the audit's prompts without the rare word.
        trained: {spec: attack} of those that train, the nominal one among them, to be checked with the photos.
    """

    adapter: FaceIDAdapter | None
    attacks: Sequence[str] = ()
    purifiers: Sequence[str] = ()
    edit_prompt: str | None = None
    training: bool = True
    trained: Mapping[str, Attack] = field(default_factory=dict)

    @staticmethod
    def load(
        options: AuditOptions, faces: FaceNetworks, instance_prompt: str, class_prompt: str, *, allow_pickle: bool
    ) -> PhotoAttackSpecs:
        """Read and check the attacks and purifiers that `options` name.

        Raises:
            UserError: there is no such attack or purifier, an attack needs more than photos, or the adapter's encoder
                cannot be loaded.
        """
        factory = AttackFactory(options, instance_prompt, class_prompt)

        def make_attack(spec: str) -> Attack:
            if spec.partition(":")[0] == ADAPTER_ATTACK:
                raise UserError(f'"{spec}" runs by itself where faceid_adapter is given; leave it out of photo_attacks')
            attack = factory.make(spec, seed=0)
            if set(attack.needs) - {"base"}:
                raise UserError(f'"{spec}" attacks weights by means of other models; leave it out of photo_attacks')
            if needs_consenting(attack):
                raise UserError(f'"{spec}" trains on other people first; leave it out of photo_attacks')
            return attack

        with Faults() as faults:
            faults.of(lambda: refuse_repeats("purifier", options.purifiers, partial(make_purifier, has_originals=True)))
            named = [] if NOMINAL_ATTACK in options.photo_attacks or not options.photo_training else [NOMINAL_ATTACK]
            made = faults.of(lambda: refuse_repeats("attack", [*named, *options.photo_attacks], make_attack))
        return PhotoAttackSpecs(
            adapter=load_adapter(options, faces, allow_pickle=allow_pickle),
            attacks=options.photo_attacks,
            purifiers=options.purifiers,
            edit_prompt=options.edit_prompt,
            training=options.photo_training,
            trained={spec: attack for spec, attack in made.items() if not is_zero_shot(spec)},
        )

    @property
    def names(self) -> list[str]:
        """The specs of all attacks, in the order of the results' rows."""
        own = [NOMINAL_ATTACK] * self.training + [ADAPTER_ATTACK] * (self.adapter is not None)
        return list(dict.fromkeys([*own, *self.attacks]))

    @property
    def caption_columns(self) -> list[str]:
        """The columns of the captions that attacks train on."""
        return sorted(set(filter(None, map(caption_column, self.trained.values()))))

    def check_photos(self, counts: Mapping[str, int]) -> None:
        """Check that photos are enough. `counts` are {person: how many photos are attacked}.

        Raises:
            UserError: `mix` leaves none of a person's photos protected, or an attack takes more than a person has.
        """
        for spec, attack in self.trained.items():
            check_enough_photos(attack, spec, counts)
        fewest = min(counts.values())
        for purifier in (make_purifier(spec, has_originals=True) for spec in self.purifiers):
            if isinstance(purifier, Mix):
                purifier.number(fewest)

    def check(self, base: Family, num_inference_steps: int) -> None:
        """Check that the adapter, all attacks and purifiers fit the base model and so many sampling steps.

        Raises:
            UserError: one of them does not.
        """
        if self.adapter is not None:
            self.adapter.check(base)
        for spec, attack in self.trained.items():
            check_on_model(spec, attack, base, num_inference_steps)
        for spec in self.purifiers:
            check_purifier(make_purifier(spec, has_originals=True), base)
        for spec in filter(is_editing, self.attacks):
            editing = cast(Editing, make_zero_shot(spec))
            editing.check(base)
            editing.check_steps(num_inference_steps)


def load_adapter(options: AuditOptions, faces: FaceNetworks, *, allow_pickle: bool) -> FaceIDAdapter | None:
    """The zero-shot adapter that `options` name, or None. Raises UserError if its encoder cannot be loaded."""
    if options.faceid_adapter is None:
        return None
    return FaceIDAdapter(
        path=Path(options.faceid_adapter),
        encoder=faces.adapter_encoder,
        controlnet=None if options.faceid_controlnet is None else Path(options.faceid_controlnet),
        allow_pickle=allow_pickle,
    )
