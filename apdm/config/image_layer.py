"""The options of the image layer, shared by `apdm perturb` and the main job.

Every budget and step is in [0, 1] pixel units: 7/255 = 0.02745 is seven grey levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from apdm.config.options import option
from apdm.core.errors import UserError

MAX_EPSILON = 64 / 255
GREY_LEVEL = 1 / 255  # less changes nothing in 8 bits
# Budgets in grey levels of the fine-tuning and the zero-shot layer; "default" is DLADiff's.
PRESETS = {"low": (4, 7), "default": (7, 11), "high": (12, 16)}
LEARNING_RATE_HELP = "Of the surrogate's AdamW; the paper does not say: here that of the attack."


@dataclass(frozen=True, kw_only=True)
class DLADiffConfig:
    """DLADiff's first layer, Algorithm 1. The paper gives no step counts, rates or choice of layers: these are ours."""

    static_surrogate: bool = option(True, "Stage 1 with the static surrogate (DSUR); false: the ablation without it.")
    static_steps: int = option(400, "iter_ft: steps of the static surrogate on clean photos.", at_least=1)
    alternate: bool = option(
        True, "Train the dynamic surrogate on the changed photos in each round (ADFT); false: once, on clean ones."
    )
    rounds: int = option(20, "iter_opt.", at_least=1)
    attention_steps: int = option(3, "iter_1: steps up L_att per round.", at_least=0)
    conditional_steps: int = option(7, "iter_2: steps up L_cond per round.", at_least=0)
    surrogate_steps: int = option(20, "iter_3: steps of the dynamic surrogate per round.", at_least=0)
    learning_rate: float = option(5e-6, LEARNING_RATE_HELP, above=0)
    batch_size: int = option(4, "Photos per surrogate step; the paper's attack takes 4.", at_least=1)
    prior_loss_weight: float = option(
        0.0,
        "Prior preservation of the dynamic surrogate: 0 is Algorithm 1 (L_cond), 1 the text's L_db.",
        at_least=0,
    )
    attention_max_positions: int = option(
        1024, "Attention layers with more positions are left out: 1024 is 32 x 32.", at_least=1
    )
    attention_token: int | None = option(
        None, "Compare the cross-attention of this token of the prompt alone; default: of all tokens.", at_least=0
    )

    @property
    def total_steps(self) -> int:
        """Steps of surrogates and photos together, for the progress bar; so in the other methods."""
        ascent = self.attention_steps * self.static_surrogate + self.conditional_steps
        dynamic = self.surrogate_steps * self.rounds if self.alternate else self.static_steps
        return self.static_steps * self.static_surrogate + self.rounds * ascent + dynamic


@dataclass(frozen=True, kw_only=True)
class AntiDiffusionConfig:
    """Anti-Diffusion: prompt tuning and the semantic disturbance loss; counts are the release's."""

    rounds: int = option(5, "Epochs of surrogate training, ascent and prompt tuning.", at_least=0)
    surrogate_steps: int = option(20, "Surrogate steps per round.", at_least=0)
    ascent_steps: int = option(10, "Steps up the loss per round, and before the first.", at_least=1)
    prompt_steps: int = option(30, "Prompt tuning steps per round, and before the first.", at_least=0)
    learning_rate: float = option(5e-7, "Of the surrogate's AdamW.", above=0)
    prompt_learning_rate: float = option(1e-3, "Of the prompts' AdamW.", above=0)
    batch_size: int = option(4, "Photos per surrogate step; the release takes 1.", at_least=1)
    attention_weight: float = option(1.0, "Of the concentration of cross-attention.", at_least=0)
    attention_max_positions: int = option(256, "16 x 16, the size of the release's maps.", at_least=1)

    @property
    def total_steps(self) -> int:
        return (self.rounds + 1) * (self.ascent_steps + self.prompt_steps) + self.rounds * self.surrogate_steps


@dataclass(frozen=True, kw_only=True)
class ASPLConfig:
    """ASPL of Anti-DreamBooth; counts are the release's, its rate is too, for both copies of the surrogate."""

    rounds: int = option(50, "Rounds.", at_least=1)
    clean_steps: int = option(3, "Steps of the copy on clean photos.", at_least=0)
    ascent_steps: int = option(6, "Steps up L_cond against the copy.", at_least=1)
    surrogate_steps: int = option(3, "Steps of the surrogate on changed photos.", at_least=0)
    learning_rate: float = option(5e-7, "Of the surrogate's AdamW.", above=0)
    batch_size: int = option(2, "Photos per surrogate step.", at_least=1)
    prior_loss_weight: float = option(1.0, "Of the surrogate's prior preservation.", at_least=0)

    @property
    def total_steps(self) -> int:
        return self.rounds * (self.clean_steps + self.ascent_steps + self.surrogate_steps)


@dataclass(frozen=True, kw_only=True)
class FSMGConfig:
    """FSMG of Anti-DreamBooth; counts are the release's."""

    static_steps: int = option(1000, "Steps of the surrogate on clean photos.", at_least=0)
    ascent_steps: int = option(100, "Steps up L_cond.", at_least=1)
    learning_rate: float = option(5e-7, "Of the surrogate's AdamW.", above=0)
    batch_size: int = option(2, "Photos per surrogate step.", at_least=1)
    prior_loss_weight: float = option(1.0, "Of the surrogate's prior preservation.", at_least=0)

    @property
    def total_steps(self) -> int:
        return self.static_steps + self.ascent_steps


@dataclass(frozen=True, kw_only=True)
class EncoderAttackConfig:
    """The attack on the VAE's encoder (PhotoGuard, Mist's textural loss)."""

    ascent_steps: int = option(100, "Steps up the loss.", at_least=1)

    @property
    def total_steps(self) -> int:
        return self.ascent_steps


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Plain noise of the whole budget: a placebo."""

    total_steps = 0


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """What may happen to a photo before it is learned: the ascent goes through transforms drawn anew for every look."""

    jpeg_probability: float = option(0.0, "Share of looks at a JPEG.", at_least=0, at_most=1)
    jpeg_quality: list[int] = option([75, 95], "Its lowest and highest quality.", at_least=1, at_most=100)
    resize_probability: float = option(0.0, "Share of looks at a photo resized and back.", at_least=0, at_most=1)
    resize_factor: list[float] = option([0.5, 1.0], "Its lowest and highest factor.", above=0)
    blur_probability: float = option(0.0, "Share of looks at a blurred photo.", at_least=0, at_most=1)
    blur_sigma: list[float] = option([0.0, 1.0], "Its lowest and highest standard deviation, pixels.", at_least=0)
    noise_probability: float = option(0.0, "Share of looks at a photo with noise.", at_least=0, at_most=1)
    noise_std: list[float] = option([0.0, 0.02], "Its lowest and highest standard deviation, of 1.", at_least=0)

    def __post_init__(self) -> None:
        for name in ("jpeg_quality", "resize_factor", "blur_sigma", "noise_std"):
            ends = getattr(self, name)
            if len(ends) != 2 or not ends[0] <= ends[1]:
                raise UserError(f"transform.{name} is {ends}; give a lower and an upper bound")
        if sum(self.probabilities) > 1 + 1e-9:
            raise UserError("the probabilities of jpeg, resize, blur and noise exceed 1 together; lower some")

    @property
    def probabilities(self) -> tuple[float, float, float, float]:
        """Of JPEG, resize, blur and noise; what is left to 1 is the photo as it is."""
        return self.jpeg_probability, self.resize_probability, self.blur_probability, self.noise_probability


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """DLADiff's second layer: faces that an identity encoder no longer takes for the person's."""

    enabled: bool = option(True, "Run it; false: the ablation without it.")
    epsilon: float | None = option(
        None, "eta_zs, around the original photo; default: the preset's.", at_least=GREY_LEVEL, at_most=MAX_EPSILON
    )
    step_size: float = option(8e-4, "sigma_zs.", above=0)
    max_steps: int = option(200, "Steps at the most; photos that have reached the aim no longer move.", at_least=1)
    encoders: list[str] = option(
        ["portrait-a"], "Identity encoders to mislead: bundled names, or files, PATH=THRESHOLD; see apdm.faces."
    )
    weights: list[float] = option([], "One weight per encoder; default: 1 each.", above=0)
    detector: str = option("portrait", "What finds faces: portrait, an insightface folder, or a YuNet file.")
    margin: float = option(
        1.0,
        "How far below its threshold an encoder's cosine is pushed, in units of what is between the threshold and 1: "
        "each encoder has its own scale.",
        at_least=0,
    )
    jitter: float = option(
        0.02, "Standard deviation of the landmarks in every step, in distances between the eyes.", at_least=0
    )
    momentum: float = option(0.0, "Of the ascent's direction (MI-FGSM); 0: DLADiff's.", at_least=0, below=1)
    no_face: Literal["skip", "refuse"] = option(
        "skip", "What to do with a photo without a face: say so and go on, or stop."
    )

    def __post_init__(self) -> None:
        if not self.encoders:
            raise UserError("zero_shot.encoders is empty; give at least one")
        if self.weights and len(self.weights) != len(self.encoders):
            raise UserError(
                f"zero_shot.weights has {len(self.weights)} numbers for {len(self.encoders)} encoders; give one each"
            )


@dataclass(frozen=True, kw_only=True)
class ImageLayerConfig:
    """How photos are protected: a layer against fine-tuning, then one against zero-shot identity adapters."""

    enabled: bool = option(False, "In the main job: ship protected photos too. `apdm perturb` always protects.")
    method: Literal["dladiff", "anti_diffusion", "aspl", "fsmg", "encoder", "noise", "none"] = option(
        "dladiff", "The layer against fine-tuning; none leaves it out."
    )
    preset: Literal["low", "default", "high"] = option(
        "default", "Budgets of both layers in grey levels: low 4 and 7, default 7 and 11 (DLADiff's), high 12 and 16."
    )
    epsilon: float | None = option(
        None, "eta_ft, around the original photo; default: the preset's.", at_least=GREY_LEVEL, at_most=MAX_EPSILON
    )
    step_size: float = option(5e-3, "sigma_ft.", above=0)
    update: Literal["sign", "normalised"] = option("sign", "What a step makes of the gradient.")
    order: Literal["fine_tuning_first", "zero_shot_first"] = option(
        "fine_tuning_first", "DLADiff's order, or the other."
    )
    greedy_timesteps: bool = option(
        False, "SimAC's choice of timesteps per photo, on the model as it is; false: all timesteps alike."
    )
    batch_size: int = option(4, "Photos per step of the ascent.", at_least=1)
    format: Literal["png", "jpeg"] = option("png", "Of the protected photos; JPEG takes protection away.")
    jpeg_quality: int = option(95, "Of a JPEG, without chroma subsampling.", at_least=1, at_most=100)
    transform: TransformConfig = field(default_factory=TransformConfig)
    dladiff: DLADiffConfig = field(default_factory=DLADiffConfig)
    anti_diffusion: AntiDiffusionConfig = field(default_factory=AntiDiffusionConfig)
    aspl: ASPLConfig = field(default_factory=ASPLConfig)
    fsmg: FSMGConfig = field(default_factory=FSMGConfig)
    encoder: EncoderAttackConfig = field(default_factory=EncoderAttackConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)

    def __post_init__(self) -> None:
        if self.method == "none" and not self.zero_shot.enabled:
            raise UserError("image_layer.method is none and image_layer.zero_shot.enabled is false: nothing is left")

    @property
    def fine_tuning_epsilon(self) -> float:
        """eta_ft in [0, 1] units."""
        return PRESETS[self.preset][0] / 255 if self.epsilon is None else self.epsilon

    @property
    def zero_shot_epsilon(self) -> float:
        """eta_zs in [0, 1] units."""
        return PRESETS[self.preset][1] / 255 if self.zero_shot.epsilon is None else self.zero_shot.epsilon

    @property
    def ball(self) -> float:
        """The larger of the budgets that are used: what no saved pixel may exceed."""
        used = [] if self.method == "none" else [self.fine_tuning_epsilon]
        return max(used + ([self.zero_shot_epsilon] if self.zero_shot.enabled else []))

    @property
    def total_steps(self) -> int:
        """Steps for one subject, for the progress bar."""
        layer = 0 if self.method == "none" else getattr(self, self.method).total_steps
        return layer + (self.zero_shot.max_steps if self.zero_shot.enabled else 0)
