"""The feature networks that the option `judge` names, loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apdm.config.judges import judge_places
from apdm.core.errors import UserError
from apdm.metrics.extractors import ClipModel, VisionModel, local_copy
from apdm.metrics.fidelity import Extractor
from apdm.metrics.inception import Inception


@dataclass(frozen=True, kw_only=True)
class FeatureNetworks:
    """Networks for whole pictures; None for one that was not given."""

    dino: VisionModel | None = None
    clip: ClipModel | None = None
    inception: Inception | None = None

    @property
    def first(self) -> Extractor | None:
        """The network whose features show the distance of class pictures."""
        return self.inception or self.dino or self.clip


def load_feature_networks(specs: Sequence[str], *, allow_pickle: bool, option: str = "judge") -> FeatureNetworks:
    """Load the networks.

    Args:
        specs: KIND:PATH_OR_HUB_NAME, see `apdm.config.judges`.
        allow_pickle: whether weights may be read from pickles.
        option: the option's name, for messages.

    Raises:
        UserError: a text is wrong, or a network cannot be found or loaded.
    """
    places = judge_places(specs, option)
    dino, clip, inception = (places.get(kind) for kind in ("dino", "clip", "inception"))
    networks = FeatureNetworks(
        dino=None if dino is None else VisionModel(dino, allow_pickle=allow_pickle),
        clip=None if clip is None else ClipModel(clip, allow_pickle=allow_pickle),
        inception=None
        if inception is None
        else Inception(local_copy(inception, allow_pickle=allow_pickle, texts=()), allow_pickle=allow_pickle),
    )
    names = [each.name for each in vars(networks).values() if each is not None]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{option}: two networks are called {twice[0]}, and results are listed by name; rename one folder"
        )
    return networks
