"""Which options go together in an audit: of a hardened model, of protected photos beside it, or of photos alone."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from apdm.core.errors import UserError

if TYPE_CHECKING:
    from apdm.config.commands.audit import AuditJobConfig

# Options that mean something only where a hardened model is attacked, with what to do instead.
ONLY_WITH_HARDENED = {
    "subjects": "name the originals with photos, and hold-out photos with holdout_data_dir",
    "attacks": "name attacks on photos with photo_attacks",
    "attack_data_dir": "the attacker trains on the photos themselves",
    "caption_column": "write it into an attack of photo_attacks, lora:caption_column=text",
    **dict.fromkeys(("suite", "placebo", "sibling", "hardened_sibling", "other_data_dir", "eval_steps"), ""),
    **dict.fromkeys(
        ("min_cost_factor", "min_other_ratio", "min_face_rate", "max_class_distance", "max_class_drift"),
        "only max_match_rate and max_likeness_over_strangers judge photos",
    ),
}
ONLY_WITH_PHOTOS = ("photos", "purifiers", "photo_attacks", "faceid_adapter")


def check_together(config: AuditJobConfig) -> None:
    """Check that the options name something to audit, and that none is without effect.

    Raises:
        UserError: an option is missing, or goes with one that is not given.
    """
    if config.hardened is not None:
        _check_with_model(config)
    elif config.protected_photos is not None:
        _check_photos_alone(config, config.protected_photos)
    else:
        raise UserError(
            "hardened must be given, the model after hardening; or protected_photos and photos, to audit photos alone"
        )


def _check_with_model(config: AuditJobConfig) -> None:
    if missing := [name for name in ("base", "subjects") if getattr(config, name) is None]:
        raise UserError(f"{', '.join(missing)} must be given with hardened; apdm audit --help-all says what they are")
    if config.protected_photos is None:
        idle = [one for one in ONLY_WITH_PHOTOS if one != "faceid_adapter" or "faceid" not in config.attacks]
        config.refuse(*idle, mend="name the folder of the protected photos with protected_photos")


def _check_photos_alone(config: AuditJobConfig, protected_photos: str) -> None:
    defaults = {field.name: field for field in dataclasses.fields(config)}
    for name, mend in ONLY_WITH_HARDENED.items():
        field, value = defaults[name], getattr(config, name)
        plain = field.default if field.default is not dataclasses.MISSING else []
        if value != plain:
            raise UserError(
                f"{name} goes with a hardened model, and none is given: leave it out" + (mend and f"; {mend}")
            )
    if config.photos is None:
        raise UserError("photos must be given: the folder of the originals of protected_photos, <id>/*.jpg")
    if config.base is None and os.path.isdir(protected_photos):  # of a folder that does not exist, the job says more
        raise UserError(
            f"base must be given: nothing beside the photos in {protected_photos} says which model they were protected "
            "against; name the model that is attacked with them"
        )
