"""An audit of a tiny pipeline."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tiny_audit import CONFIG, ConvJudge, person, photos
from torch import Tensor

from apdm.audit.inputs.people import AuditSubjects
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.model_audit import attack_and_judge
from apdm.audit.results.schema import to_json
from apdm.audit.results.store import CellStore
from apdm.config import AuditConfig
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.metrics.judges import Judges


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.fixture(scope="module")
def run_audit(family: Family) -> Callable[..., tuple[dict[str, Any], dict[str, Tensor]]]:
    """run_audit(config, ...) -> the content of results.json, and the pictures."""

    def run(config: AuditConfig = CONFIG, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        prior = encode_images(family, photos(4, 50), batch_size=1)
        hardened = options.pop("hardened", family)
        face_score = options.pop("face_score", ConvJudge("face", -1.0, 3))
        encoders = [ConvJudge("one", -1.0, 1), ConvJudge("two", -1.0, 2)]
        store, reader, clip = (options.pop(name, None) for name in ("store", "reader", "clip"))
        afterwards = options.pop("afterwards", 0)
        subjects = AuditSubjects(
            options.pop("subjects", [person("s01", 1)]),
            options.pop("others", [person("o01", 2)]),
            options.pop("strangers", photos(4, 60)),
        )
        plan = AuditPlan(
            options=config,
            instance_prompt="a photo of sks person",
            class_prompt="a photo of person",
            models={"base": family, "hardened": hardened, **options.pop("more", {})},
            judges=Judges(encoders, face_score, ConvJudge("features", 0.0, 4), reader=reader, clip=clip),
            subjects=subjects,
            **options,
        )
        with TemporaryDirectory() as folder:
            done = attack_and_judge(plan, prior, store=store or CellStore(Path(folder)), afterwards=afterwards)
            assert done is not None
            return to_json(done[0]), dict(done[1])

    return run
