"""Photo protections against fine-tuning: one file for each.

A photo protection is a frozen dataclass that derives from `PhotoProtection`. Its fields are its options. It is found by
its name, or by the path of a file and the name of a class:

    dladiff                       the class of that name, with its defaults
    dladiff:rounds=10             options are the fields of the class
    path/to/mine.py:Mine:steps=5  a class in a file of your own, and its options

A file that is put into this folder is known by its name, and needs no entry anywhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import is_dataclass
from typing import ClassVar

from apdm.config.groups.image_layer import ImageLayerConfig
from apdm.config.plugins import PROTECTIONS
from apdm.families import Family
from apdm.image_layer.pgd import PGD
from apdm.image_layer.task import ProtectionTask

__all__ = ["PROTECTIONS", "PhotoProtection", "make_protection"]


class PhotoProtection(ABC):
    """A way to change the photos of one subject so that fine-tuning learns less from them.

    Subclasses are frozen dataclasses whose fields are the options. They implement `protect` and `total_steps`. These
    options mean the same in every protection that has them, and are read here and by plans: `batch_size`,
    `prior_loss_weight` and `train_text_encoder` of surrogates, and `attention_max_positions`.

    Attributes:
        name: the name under which the registry and the results know the protection.
        surrogate_copies: how many copies of the denoiser the surrogates hold at most, with their gradients and AdamW's
            moments. The plan of a dry run counts memory with it.
        loop: the class that moves the photos: `PGD`, or a subclass with other hooks.
    """

    name: ClassVar[str]
    surrogate_copies: ClassVar[int] = 0
    loop: ClassVar[type[PGD]] = PGD

    def check_fits(self, family: Family, prompt: str, class_prompt: str) -> None:
        """Check, before any long work, that the protection can work on a model.

        Args:
            prompt: the prompt that an attacker trains the photos with.

        Raises:
            UserError: it cannot. By default: surrogates shall train text encoders, and there is none that can be.
        """
        if getattr(self, "train_text_encoder", False):
            family.text_encoders(f"train_text_encoder of image_layer.method {self.name}")

    @abstractmethod
    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Move the photos of `pgd`, usually by calls of `pgd.ascend`.

        `pgd.photos` are the photos in their present state. When this method returns, they are rounded to 8 bits, kept
        within the budget around the original photos, and saved.

        Args:
            task: the original photos, the model, the prompts, and the random generator. All random numbers must come
                from `task.generator`, so that equal seeds give equal photos.
            pgd: the loop, which holds the photos of the subject.

        Raises:
            UserError: the protection cannot work on this model. Raise it before any long work.
        """

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar.

        It counts the steps of `pgd.ascend`, of `Surrogate.fit`, and every further call of `task.callback`.
        """

    @property
    def fit_steps(self) -> int:
        """How many of `total_steps` are steps of `Surrogate.fit`, for plans."""
        return 0

    @property
    def errors_per_step(self) -> int:
        """How often a step outside of `fit_steps` computes a photo's denoising error with its gradient, for plans."""
        return 1

    def passes(self, photos: int) -> float:
        """Forward passes of the denoiser for a subject with so many photos, in which a backward pass counts as two."""
        others = (self.total_steps - self.fit_steps) * self.errors_per_step * photos
        return 3 * (self.fit_steps * self.fit_pictures + others)

    @property
    def fit_pictures(self) -> int:
        """Pictures in one of the `fit_steps`: photos, and with prior preservation as many class pictures, for plans."""
        return getattr(self, "batch_size", 1) * (2 if self.needs_class_pictures else 1)

    @property
    def needs_class_pictures(self) -> bool:
        """Whether `task.prior` is used, by default for prior preservation. The job then draws class pictures first."""
        return getattr(self, "prior_loss_weight", 0) > 0


def make_protection(config: ImageLayerConfig) -> PhotoProtection:
    """Make the photo protection that `config.method` names.

    The options come from the text of `config.method`. If the class derives from the dataclass of one of the option
    groups of `config`, the values of this group come first, and the text wins.

    Raises:
        UserError: there is no such photo protection or option, or a value does not fit.
    """
    cls, _ = PROTECTIONS.parse(config.method)
    group = next((g for g in vars(config).values() if is_dataclass(g) and issubclass(cls, type(g))), None)
    made: PhotoProtection = PROTECTIONS.make(config.method, **({} if group is None else vars(group)))
    return made
