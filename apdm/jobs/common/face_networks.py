"""Which networks look at faces in a job, as its options say."""

from __future__ import annotations

from apdm.config import AttackConfig, AuditJobConfig, HardenConfig, PerturbConfig
from apdm.config.groups.audit import AuditOptions
from apdm.config.groups.image_layer import ZeroShotConfig
from apdm.core.errors import UserError
from apdm.faces import FaceChoice, FaceNetworks
from apdm.families.miniature import is_miniature


def face_networks(config: HardenConfig | PerturbConfig | AuditJobConfig | AttackConfig) -> FaceNetworks:
    """Return the networks for faces. Each is loaded when it is first used, and a run should ask for them once.

    Options of parts that are off do not count: a hardening run without an audit has no judges. If the networks are of
    another world than the model, the error is raised when one is asked for.
    """
    audit: AuditOptions | None = None
    layer: ZeroShotConfig | None = None
    if isinstance(config, AuditJobConfig | AttackConfig):
        audit = config.audit
    elif config.image_layer.zero_shot.enabled and config.protects_photos:
        layer = config.image_layer.zero_shot
    if isinstance(config, HardenConfig) and config.measures_likeness:
        audit = config.audit
    choice = FaceChoice(
        faces=config.faces,
        encoders=audit.encoders if audit else (),
        face_score=audit.face_score if audit else None,
        adapter_encoder=audit.faceid_encoder if audit and audit.faceid_adapter else None,
        targets=layer.encoders if layer else (),
        detector=layer.detector if layer else None,
        allow_pickle=config.allow_pickle,
        prefix=audit.prefix if audit else "",
    )
    fault = None
    if config.subject_kind == "person" and (audit or layer):
        try:
            choice.check_world(str(config.base), miniature=is_miniature(str(config.base), config.single_file_config))
        except UserError as error:
            fault = error
    return FaceNetworks(choice, fault)
