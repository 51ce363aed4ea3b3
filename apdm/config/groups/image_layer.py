"""The options of the photo protection, which `apdm perturb` and `apdm harden` share.

Every budget and step size is in [0, 1] pixel units: 7/255 = 0.02745 is seven grey levels.

The photo protection has two layers, one against fine-tuning and one against zero-shot adapters. There are several
methods against fine-tuning. Each method is one file in `apdm/image_layer/protections/`. The options of a method are the
fields of its class. They can always be given after the method's name: `method: dladiff:rounds=10`. A method with many
options also has a group of options in this file, so that a YAML file can list them one per line. The group's dataclass
declares the fields, and the method's class inherits them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from apdm.config.options import option
from apdm.core.errors import UserError

NO_METHOD = "none"
MAX_EPSILON = 64 / 255
GREY_LEVEL = 1 / 255  # a smaller change is lost when the photo is saved in 8 bits
# Budgets in grey levels of the fine-tuning layer and of the zero-shot layer; "default" is DLADiff's.
BUDGETS = {"low": (4, 7), "default": (7, 11), "high": (12, 16)}


@dataclass(frozen=True, kw_only=True)
class DLADiffConfig:
    """DLADiff's fine-tuning layer (Algorithm 1). The paper gives no step counts, rates or layers."""

    static_surrogate: bool = option(
        True,
        "Compare attention with a static surrogate, a copy of the model that has learned the clean photos (DSUR). "
        "false is the ablation without it.",
    )
    static_steps: int = option(
        400, "iter_ft: training steps of the static surrogate on the clean photos. Time grows with it.", at_least=1
    )
    alternate: bool = option(
        True,
        "Train the dynamic surrogate on the changed photos in every round (ADFT). false is the ablation: it is trained "
        "once, on the clean photos.",
    )
    rounds: int = option(20, "iter_opt: rounds of both ascents and of surrogate training.", at_least=1)
    attention_steps: int = option(3, "iter_1: PGD steps on the attention loss L_att in each round.", at_least=0)
    conditional_steps: int = option(7, "iter_2: PGD steps on the denoising loss L_cond in each round.", at_least=0)
    surrogate_steps: int = option(20, "iter_3: training steps of the dynamic surrogate in each round.", at_least=0)
    learning_rate: float = option(
        5e-6,
        "Learning rate of the surrogates' AdamW. The paper does not give one; this is the rate of the nominal attack.",
        above=0,
    )
    batch_size: int = option(4, "Photos per training step of a surrogate. The paper's attack uses 4.", at_least=1)
    prior_loss_weight: float = option(
        0.0,
        "Weight of prior preservation in the dynamic surrogate's loss. 0 is Algorithm 1 (L_cond), 1 is the loss that "
        "the paper's text gives (L_db).",
        at_least=0,
    )
    attention_max_positions: int = option(
        1024,
        "Attention layers with more positions than this are left out of L_att, because their maps need much memory. "
        "1024 is 32 x 32.",
        at_least=1,
    )
    attention_token: int | None = option(
        None,
        "Compare the cross-attention of this token of the prompt only, counted from 0. Default: all tokens.",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class AntiDiffusionConfig:
    """Anti-Diffusion: prompt tuning and the semantic disturbance loss. Step counts are from the authors' code."""

    rounds: int = option(5, "Rounds of surrogate training, ascent and prompt tuning.", at_least=0)
    surrogate_steps: int = option(20, "Training steps of the surrogate in each round.", at_least=0)
    ascent_steps: int = option(10, "PGD steps in each round, and before the first round.", at_least=1)
    prompt_steps: int = option(30, "Steps of prompt tuning in each round, and before the first round.", at_least=0)
    learning_rate: float = option(5e-7, "Learning rate of the surrogate's AdamW.", above=0)
    prompt_learning_rate: float = option(1e-3, "Learning rate of the AdamW that tunes the prompts.", above=0)
    batch_size: int = option(4, "Photos per training step of the surrogate. The release uses 1.", at_least=1)
    attention_weight: float = option(
        100.0,
        "Weight of the concentration of cross-attention in the semantic disturbance loss. The release's weight of 1 is "
        "130 in this scale for attention below 0.01; above, the release has no gradient.",
        at_least=0,
    )
    attention_max_positions: int = option(
        256,
        "Attention layers with more positions than this are left out. 256 is 16 x 16, as in the release.",
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class CleanPhotosConfig:
    """Which clean photos a surrogate learns. Anti-DreamBooth's learns others of the person than are protected."""

    clean_data_dir: str | None = option(
        None,
        "Folder of other photos of the same subjects, <id>/*.jpg, which are not protected and which surrogates learn "
        "as clean photos. By default they learn the originals of the protected photos.",
        holds="folder",
    )
    clean_set: Literal["A", "B", "C", "D"] = option(
        "B",
        "Which set to take where the photos in clean_data_dir lie in <id>/set_A, set_B and set_C. Anti-DreamBooth "
        "learns A and protects B; give it both letters to do so, here and in protected_set.",
    )


@dataclass(frozen=True, kw_only=True)
class ASPLConfig(CleanPhotosConfig):
    """ASPL of Anti-DreamBooth. Step counts and the learning rate are from the authors' code."""

    rounds: int = option(50, "Rounds of copying, ascent and surrogate training.", at_least=1)
    clean_steps: int = option(
        3, "Training steps of the surrogate's copy on the clean photos in each round.", at_least=0
    )
    ascent_steps: int = option(6, "PGD steps on the copy's denoising loss L_cond in each round.", at_least=1)
    surrogate_steps: int = option(3, "Training steps of the surrogate on the changed photos in each round.", at_least=0)
    learning_rate: float = option(5e-7, "Learning rate of the AdamW of the surrogate and of its copy.", above=0)
    batch_size: int = option(2, "Photos per training step of a surrogate.", at_least=1)
    prior_loss_weight: float = option(1.0, "Weight of prior preservation in the surrogates' loss.", at_least=0)
    train_text_encoder: bool = option(
        False,
        "Train every CLIP text encoder of a surrogate too, as Anti-DreamBooth does. It needs the memory of their "
        "copies.",
    )


@dataclass(frozen=True, kw_only=True)
class FSMGConfig(CleanPhotosConfig):
    """FSMG of Anti-DreamBooth. Step counts are from the authors' code."""

    static_steps: int = option(1000, "Training steps of the surrogate on the clean photos.", at_least=0)
    ascent_steps: int = option(100, "PGD steps on the surrogate's denoising loss L_cond.", at_least=1)
    learning_rate: float = option(5e-7, "Learning rate of the surrogate's AdamW.", above=0)
    batch_size: int = option(2, "Photos per training step of the surrogate.", at_least=1)
    prior_loss_weight: float = option(1.0, "Weight of prior preservation in the surrogate's loss.", at_least=0)
    train_text_encoder: bool = option(
        False,
        "Train every CLIP text encoder of a surrogate too, as Anti-DreamBooth does. It needs the memory of their "
        "copies.",
    )


@dataclass(frozen=True, kw_only=True)
class PAPConfig:
    """PAP: prompts drawn around those that describe the photo. Counts and the rate are from the authors' code."""

    ascent_steps: int = option(120, "PGD steps.", at_least=1)
    prompt_steps: int = option(
        20, "Gradient steps to the prompt that describes a photo, before every PGD step.", at_least=1
    )
    prompt_learning_rate: float = option(
        250.0,
        "Size of these steps. The drawn prompts spread with the root of prompt_steps times this, over the number of "
        "elements of the encoded prompt, so a small text encoder needs a smaller one.",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class EncoderAttackConfig:
    """The attack on the VAE's encoder (PhotoGuard, and the textural loss of Mist)."""

    ascent_steps: int = option(100, "PGD steps.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Random changes of photos, such as JPEG compression. Losses use changed photos, so that protections survive."""

    jpeg_probability: float = option(
        0.0, "Share of loss evaluations that use a photo which was saved as JPEG.", at_least=0, at_most=1
    )
    jpeg_quality: list[int] = option([75, 95], "Lowest and highest JPEG quality.", at_least=1, at_most=100)
    resize_probability: float = option(
        0.0, "Share of loss evaluations that use a photo which was resized and resized back.", at_least=0, at_most=1
    )
    resize_factor: list[float] = option([0.5, 1.0], "Lowest and highest factor of the first resizing.", above=0)
    blur_probability: float = option(0.0, "Share of loss evaluations that use a blurred photo.", at_least=0, at_most=1)
    blur_sigma: list[float] = option(
        [0.0, 1.0], "Lowest and highest standard deviation of the blur, in pixels.", at_least=0
    )
    noise_probability: float = option(
        0.0, "Share of loss evaluations that use a photo with added noise.", at_least=0, at_most=1
    )
    noise_std: list[float] = option(
        [0.0, 0.02], "Lowest and highest standard deviation of the noise, in [0, 1] pixel units.", at_least=0
    )

    def __post_init__(self) -> None:
        for name in ("jpeg_quality", "resize_factor", "blur_sigma", "noise_std"):
            ends = getattr(self, name)
            if len(ends) != 2 or not ends[0] <= ends[1]:
                raise UserError(f"transform.{name} is {ends}; give a lower and an upper bound")
        if sum(self.probabilities) > 1 + 1e-9:
            raise UserError(
                "the probabilities of jpeg, resize, blur and noise in transform add up to more than 1; lower some"
            )

    @property
    def probabilities(self) -> tuple[float, float, float, float]:
        """Probabilities of JPEG, resizing, blur and noise. The rest, up to 1, is the probability of no change."""
        return self.jpeg_probability, self.resize_probability, self.blur_probability, self.noise_probability


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """The layer against zero-shot adapters: face encoders no longer recognise the person in the protected photo."""

    enabled: bool = option(
        True,
        "Whether the layer against zero-shot adapters is used. false is the ablation without it. By default it is not "
        "used for objects, which have no faces.",
        common={"perturb": "what is made", "app": "what is made"},
    )
    epsilon: float | None = option(
        None,
        "eta_zs: the largest change of a pixel against the original photo. Default: the preset's.",
        at_least=GREY_LEVEL,
        at_most=MAX_EPSILON,
    )
    step_size: float = option(8e-4, "sigma_zs: the change of a pixel in one PGD step.", above=0)
    max_steps: int = option(
        200,
        "Largest number of PGD steps against zero-shot adapters. A photo whose cosines are all below their thresholds "
        "by the margin is not changed further.",
        at_least=1,
        common={"perturb": "how long, and how strongly", "app": "how long, and how strongly"},
    )
    encoders: list[str] = option(
        [],
        "Face encoders that the photo must mislead: InsightFace packs or files, PATH=THRESHOLD. Several of "
        "different kinds protect better. By default the first of faces; without faces the bundled portrait-a.",
        holds="spec",
        common={"perturb": "faces and judges", "app": "faces and judges"},
    )
    weights: list[float] = option([], "One weight for each encoder. Default: 1 each.", above=0)
    detector: str | None = option(
        None,
        "The face detector: an InsightFace folder or a YuNet file. By default the detector of the pack in faces; "
        "without faces the bundled one, portrait.",
        holds="spec",
    )
    margin: float = option(
        1.0,
        "How far below its threshold the cosine of an encoder is pushed, as a multiple of 1 - threshold. The multiple "
        "is used because cosines of different encoders have different scales.",
        at_least=0,
    )
    jitter: float = option(
        0.02,
        "Standard deviation of the random shift of the landmarks in every step, in units of the distance between the "
        "eyes. Detectors place landmarks differently; the protection must hold for all of them.",
        at_least=0,
    )
    momentum: float = option(
        0.0, "Share of the earlier steps' direction that a step keeps (MI-FGSM). 0 is DLADiff's.", at_least=0, below=1
    )
    no_face: Literal["skip", "refuse"] = option(
        "skip", "What to do about a photo without a face: leave it to the other layer and say so in the plan, or stop."
    )

    def __post_init__(self) -> None:
        count = len(self.encoders) or 1  # without encoders, one is chosen
        if self.weights and len(self.weights) != count:
            raise UserError(
                f"zero_shot.weights has {len(self.weights)} numbers for {count} encoder{'s' * (count > 1)}; give one "
                "for each encoder"
            )


@dataclass(frozen=True, kw_only=True)
class ImageLayerConfig:
    """How photos are protected: one layer against fine-tuning, and one against zero-shot identity adapters."""

    enabled: bool = option(
        False,
        "Whether `apdm harden` also writes protected photos. `apdm perturb` always protects photos.",
        common={"harden": "what is made"},
    )
    method: str = option(
        "dladiff",
        "The protection against fine-tuning; none leaves this layer out. There are dladiff, anti_diffusion, aspl, "
        "fsmg, disdiff, pap, mist, encoder and noise; file.py:Name is a class of your own. disdiff has the options of "
        "aspl, too. Options may follow: dladiff:rounds=10.",
        holds="spec",
        common="what is made",
    )
    preset: Literal["low", "default", "high"] = option(
        "default",
        "Budgets of the two layers, in grey levels: low is 4 and 7, default is 7 and 11 (DLADiff's), high is 12 and "
        "16. A larger budget protects more and is easier to see.",
        common={"perturb": "how long, and how strongly", "app": "how long, and how strongly"},
    )
    epsilon: float | None = option(
        None,
        "eta_ft: the largest change of a pixel by the fine-tuning layer. Default: the preset's.",
        at_least=GREY_LEVEL,
        at_most=MAX_EPSILON,
    )
    step_size: float = option(
        5e-3, "sigma_ft: the change of a pixel in one PGD step of the fine-tuning layer.", above=0
    )
    update: Literal["sign", "normalised"] = option(
        "sign",
        "The direction of a PGD step of the fine-tuning layer: the sign of the gradient, or the gradient divided by "
        "its root mean square.",
    )
    order: Literal["fine_tuning_first", "zero_shot_first"] = option(
        "fine_tuning_first", "Which layer is applied first. DLADiff applies the fine-tuning layer first."
    )
    greedy_timesteps: bool = option(
        False,
        "Choose the timesteps of each photo as SimAC does, on the unchanged model. false uses all timesteps alike.",
    )
    working_side: int | None = option(
        None,
        "Side in pixels of the copy of a photo that the fine-tuning layer works on. The shorter side of the copy has "
        "at most this many, and the change is enlarged to the photo's own size. A larger value needs more time and "
        "memory. Default: twice the resolution.",
        at_least=16,
        common={"perturb": "memory", "app": "memory"},
    )
    batch_size: int = option(
        4,
        "Photos per PGD step. More photos need more memory; the result stays nearly the same.",
        at_least=1,
        common={"perturb": "memory", "app": "memory"},
    )
    format: Literal["png", "jpeg"] = option(
        "png",
        "File format of the protected photos. JPEG compression takes away part of the protection, and moves single "
        "pixels out of the budget, which then holds before it.",
        common={"perturb": "what is made", "app": "what is made"},
    )
    jpeg_quality: int = option(
        95, "Quality of JPEG files, which are written without chroma subsampling.", at_least=1, at_most=100
    )
    transform: TransformConfig = field(default_factory=TransformConfig)
    dladiff: DLADiffConfig = field(default_factory=DLADiffConfig)
    anti_diffusion: AntiDiffusionConfig = field(default_factory=AntiDiffusionConfig)
    aspl: ASPLConfig = field(default_factory=ASPLConfig)
    fsmg: FSMGConfig = field(default_factory=FSMGConfig)
    pap: PAPConfig = field(default_factory=PAPConfig)
    encoder: EncoderAttackConfig = field(default_factory=EncoderAttackConfig)
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)

    def __post_init__(self) -> None:
        if self.method == NO_METHOD and not self.zero_shot.enabled:
            raise UserError(
                "image_layer.method is none and image_layer.zero_shot.enabled is false, so nothing would be protected; "
                "enable one of them"
            )

    @property
    def fine_tuning_epsilon(self) -> float:
        """eta_ft, the budget of the fine-tuning layer, in [0, 1] pixel units."""
        return BUDGETS[self.preset][0] / 255 if self.epsilon is None else self.epsilon

    @property
    def zero_shot_epsilon(self) -> float:
        """eta_zs, the budget of the zero-shot layer, in [0, 1] pixel units."""
        return BUDGETS[self.preset][1] / 255 if self.zero_shot.epsilon is None else self.zero_shot.epsilon
