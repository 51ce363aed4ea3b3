"""The two layers of the photo protection, and the order in which they are applied to a subject's photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from apdm.config.groups.image_layer import NO_METHOD, CleanPhotosConfig, ImageLayerConfig
from apdm.core.errors import UserError
from apdm.faces import Face
from apdm.families import Family
from apdm.image_layer.pgd import PGD, Update
from apdm.image_layer.photos import Photo, quantise
from apdm.image_layer.protections import PhotoProtection, make_protection
from apdm.image_layer.task import ProtectionTask, fewest_positions
from apdm.image_layer.timesteps import greedy_timesteps
from apdm.image_layer.views import Draft, SmallCopy, View, Whole, part_with
from apdm.image_layer.zero_shot import FaceModels, IdentityObjective


class Layer(Protocol):
    """One layer of the photo protection."""

    @property
    def epsilon(self) -> float:
        """The budget: the largest change of a pixel against the original photo, in [0, 1] pixel units."""
        ...

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        ...

    def view(self, draft: Draft, working: Tensor, faces: Sequence[Face]) -> View:
        """Return what this layer sees of a photo.

        Args:
            draft: the photo.
            working: its working copy.
            faces: the faces in it that are to be misled.
        """
        ...

    def apply(self, task: ProtectionTask, start: list[Tensor]) -> list[Tensor]:
        """Change the photos of a subject.

        Args:
            task: the model, and the original photos as this layer sees them.
            start: the photos as an earlier layer left them, each `[3, H, W]` in [0, 1].

        Returns:
            The changed photos, within `epsilon` of the originals or of `start`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FineTuningLayer:
    """The layer against fine-tuning: a photo protection and the options of its loop. `PGD` explains them.

    Attributes:
        greedy_timesteps: whether SimAC's timesteps are chosen for each photo before the ascent.
    """

    protection: PhotoProtection
    epsilon: float
    step_size: float
    update: Update = "sign"
    batch_size: int = 4
    greedy_timesteps: bool = False

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.protection.total_steps

    @property
    def pictures_at_once(self) -> int:
        """How many pictures one graph of the denoiser is for."""
        return max(self.batch_size, self.protection.fit_pictures)

    @property
    def text_encoder_copies(self) -> int:
        """How many copies of the text encoders the surrogates hold at most, with gradients and AdamW's moments."""
        return self.protection.surrogate_copies if getattr(self.protection, "train_text_encoder", False) else 0

    @property
    def attention_positions(self) -> int:
        """The most positions of an attention layer whose maps the protection compares; 0 if it compares none."""
        return int(getattr(self.protection, "attention_max_positions", 0))

    def check_fits(self, family: Family, prompt: str, class_prompt: str, *, resolution: int) -> None:
        """Check, before any long work, that the protection can work on a model; see `LayeredProtection.check_fits`."""
        self.protection.check_fits(family, prompt, class_prompt)
        if not self.attention_positions:
            return
        fewest = fewest_positions(family, prompt, resolution)
        if not 0 < fewest <= self.attention_positions:
            advice = f"raise it to {fewest} or more, or lower resolution" if fewest else "choose another method"
            raise UserError(
                f"image_layer.method {self.protection.name} compares attention maps of at most "
                f"{self.attention_positions} positions (attention_max_positions), and at {resolution} pixels "
                f"{family.name} has none so small; {advice}"
            )

    def view(self, draft: Draft, working: Tensor, faces: Sequence[Face]) -> View:
        """Return the whole of a small photo, and a small copy of a large one."""
        size = working.shape[1], working.shape[2]
        return SmallCopy(size, self.epsilon) if draft.is_large else Whole()

    def apply(self, task: ProtectionTask, start: list[Tensor]) -> list[Tensor]:
        """Change the photos with the photo protection. `Layer.apply` explains the arguments."""
        pgd = self.protection.loop(
            task.originals,
            epsilon=self.epsilon,
            step_size=self.step_size,
            start=start,
            reach=self.epsilon,  # otherwise it could undo all changes of an earlier zero-shot layer
            update=self.update,
            batch_size=self.batch_size,
            callback=task.callback,
        )
        if self.greedy_timesteps:
            chosen = greedy_timesteps(task, epsilon=self.epsilon, step_size=self.step_size)
            task = replace(task, timesteps=chosen)
        self.protection.protect(task, pgd)
        return pgd.photos


@dataclass(frozen=True, kw_only=True)
class ZeroShotLayer:
    """The layer against zero-shot adapters. `IdentityObjective` and `PGD` explain the options.

    Attributes:
        max_steps: the largest number of steps. The layer stops earlier if no encoder recognises anybody.
    """

    faces: FaceModels
    epsilon: float
    step_size: float
    max_steps: int
    weights: Sequence[float] = ()
    margin: float = 1.0
    jitter: float = 0.02
    momentum: float = 0.0
    batch_size: int = 4

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.max_steps

    def view(self, draft: Draft, working: Tensor, faces: Sequence[Face]) -> View:
        """Return the whole of a small photo, and of a large one the part with the faces."""
        return part_with(faces, self.faces.encoders, *draft.photo.pixels.shape[1:]) if draft.is_large else Whole()

    def apply(self, task: ProtectionTask, start: list[Tensor]) -> list[Tensor]:
        """Change the faces in the photos. `Layer.apply` explains the arguments."""
        objective = IdentityObjective(
            task.originals,
            self.faces,
            task.generator,
            chosen=task.faces,
            weights=self.weights,
            margin=self.margin,
            jitter=self.jitter,
            transform=task.transform,
        )
        pgd = PGD(
            task.originals,
            epsilon=self.epsilon,
            step_size=self.step_size,
            start=start,
            momentum=self.momentum,
            batch_size=self.batch_size,
            callback=task.callback,
        )
        objective.ascend(pgd, self.max_steps)
        return pgd.photos


@dataclass(frozen=True)
class LayeredProtection:
    """One or two layers, in the order in which they are applied."""

    layers: tuple[Layer, ...]

    @staticmethod
    def from_config(config: ImageLayerConfig, faces: FaceModels | None) -> LayeredProtection:
        """Make the layers that the options ask for.

        Args:
            faces: the models of the zero-shot layer. They must be given if this layer is enabled.

        Raises:
            UserError: there is no such photo protection, or one of its options does not fit.
            ValueError: the zero-shot layer is enabled and `faces` is None.
        """
        layers: list[Layer] = []
        if config.method != NO_METHOD:
            layers.append(
                FineTuningLayer(
                    protection=make_protection(config),
                    epsilon=config.fine_tuning_epsilon,
                    step_size=config.step_size,
                    update=config.update,
                    batch_size=config.batch_size,
                    greedy_timesteps=config.greedy_timesteps,
                )
            )
        if config.zero_shot.enabled:
            if faces is None:
                raise ValueError("the zero-shot layer is enabled, but no face detector and encoders were given")
            options = config.zero_shot
            layers.append(
                ZeroShotLayer(
                    faces=faces,
                    epsilon=config.zero_shot_epsilon,
                    step_size=options.step_size,
                    max_steps=options.max_steps,
                    weights=options.weights,
                    margin=options.margin,
                    jitter=options.jitter,
                    momentum=options.momentum,
                    batch_size=config.batch_size,
                )
            )
        if config.order == "zero_shot_first":
            layers.reverse()
        return LayeredProtection(tuple(layers))

    @property
    def fine_tuning(self) -> FineTuningLayer | None:
        """The layer against fine-tuning; None if there is none."""
        return next((layer for layer in self.layers if isinstance(layer, FineTuningLayer)), None)

    @property
    def zero_shot(self) -> ZeroShotLayer | None:
        """The layer against zero-shot adapters; None if there is none."""
        return next((layer for layer in self.layers if isinstance(layer, ZeroShotLayer)), None)

    @property
    def method(self) -> str:
        """The name of the photo protection against fine-tuning; "none" if there is no such layer."""
        return self.fine_tuning.protection.name if self.fine_tuning else NO_METHOD

    @property
    def epsilon(self) -> float:
        """The largest budget of the layers: no pixel of a saved photo is changed by more."""
        return max(layer.epsilon for layer in self.layers)

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return sum(layer.total_steps for layer in self.layers)

    @property
    def needs_class_pictures(self) -> bool:
        """Whether the photo protection trains its surrogates with class pictures."""
        return self.fine_tuning is not None and self.fine_tuning.protection.needs_class_pictures

    @property
    def clean_photos(self) -> CleanPhotosConfig | None:
        """Where other photos of the subjects lie, which surrogates learn; None if they learn the protected ones."""
        found = self.fine_tuning.protection if self.fine_tuning else None
        return found if isinstance(found, CleanPhotosConfig) and found.clean_data_dir else None

    def check_fits(self, family: Family, prompt: str, class_prompt: str, *, resolution: int) -> None:
        """Check, before any long work, that the layer against fine-tuning can work on a model.

        Args:
            prompt: the prompt that an attacker trains the photos with.
            resolution: side of the square that a trainer makes of a photo, in pixels.

        Raises:
            UserError: it cannot.
        """
        if self.fine_tuning is not None:
            self.fine_tuning.check_fits(family, prompt, class_prompt, resolution=resolution)

    def protect(self, photos: Sequence[Photo], task: ProtectionTask) -> list[Tensor]:
        """Protect all photos of a subject.

        Args:
            photos: the photos in 8 bits.
            task: the same photos as `task.originals`, and the model. Large photos may be there as working copies.

        Returns:
            The 8-bit pixels of each protected photo, `[3, H, W]`, within `epsilon` of the original.
        """
        drafts = [Draft(*pair) for pair in zip(photos, task.originals, strict=True)]
        found = task.faces or self._find_faces(drafts)
        for layer in self.layers:
            _change(layer, drafts, task, found)
        return [quantise(draft.pixels(), draft.photo.pixels, self.epsilon) for draft in drafts]

    def _find_faces(self, drafts: Sequence[Draft]) -> list[list[Face]]:
        """Return all faces in each photo, if there is a zero-shot layer."""
        if self.zero_shot is None:
            return [[] for _ in drafts]
        return [self.zero_shot.faces.detector.detect(draft.original.cpu()) for draft in drafts]


def _change(layer: Layer, drafts: Sequence[Draft], task: ProtectionTask, found: Sequence[Sequence[Face]]) -> None:
    """Let one layer change the photos. What it saw of them is freed at the end; `apdm.image_layer.memory` counts it."""
    views = [layer.view(*each) for each in zip(drafts, task.originals, found, strict=True)]
    originals = [view.cut(draft.original) for view, draft in zip(views, drafts, strict=True)]
    starts = originals
    if any(draft.is_changed for draft in drafts):
        starts = [view.cut(draft.pixels()) for view, draft in zip(views, drafts, strict=True)]
    faces = [[face.moved(*view.corner) for face in own] for view, own in zip(views, found, strict=True)]
    ends = layer.apply(replace(task, originals=originals, faces=faces), starts)
    del originals
    for draft, view, start, end in zip(drafts, views, starts, ends, strict=True):
        draft.keep(view, start, end)
