"""The base class of all model families. `texts.py` reads prompts, `sampling.py` samples, `saving.py` writes.

`apdm/families/__init__.py` explains what a family is. `docs/adding-a-family.md` explains how to add one.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from apdm.core.pictures import to_unit
from apdm.families.attention import AttentionLayer, is_attention
from apdm.families.fit import check_fit
from apdm.families.lora_layers import LoraTarget, layer_names
from apdm.families.posterior import Posterior
from apdm.families.sampling import Sampler
from apdm.families.saving import Saver
from apdm.families.single_file.layout import SingleFileLayout
from apdm.families.texts import TextReader

DrawTimesteps = Callable[[int, torch.Generator], Tensor]  # (count, generator) -> [count], on the generator's device

# (total, count, generator) -> [count] timesteps from 0 to total - 1
TimestepDensity = Callable[[int, int, torch.Generator], Tensor]


def uniform_timesteps(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` whole numbers from 0 to `total - 1`, all equally likely: `[count]`."""
    return torch.randint(total, (count,), generator=generator, device=generator.device)


class Family(TextReader, Sampler, Saver):
    """A diffusers pipeline, seen through the operations that hardening, attacks and audits need.

    All parts except the denoiser are frozen. Gradients still flow through the VAE and the text encoders to images, and
    to a text encoder that an attack makes trainable again.

    A subclass states the facts about its architecture in class attributes.

    Attributes:
        name: the family's name, for `--family`.
        pipeline_classes: names of the diffusers pipeline classes that it handles.
        denoiser_name: the part that is trained, under the pipeline's name for it ("unet", "transformer").
        required_parts: the other parts that the pipeline cannot work without.
        block_names: the denoiser's attributes that hold a block or a list of blocks. An engine that shards the model
            gathers one block at a time.
        attention_projections: the last parts of the names of the linear layers in the denoiser's attention. LoRA adapts
            them by default. Names that a particular denoiser does not have are passed over.
        cross_attention_weights: pieces of the names of all weights through which the denoiser reads the prompt.
        key_value_weights: last parts of the names of the weights that make keys and values from the prompt.
        prediction_type: what the denoiser predicts, such as "epsilon".
        prompt_tokenizer: the tokenizer whose tokens come first in the prompt embeddings, under the pipeline's name.
        trainable_text_encoders: the text encoders that attacks may train and add new words to. T5 is left out, as in
            diffusers' DreamBooth scripts, because it has several billion weights.
        text_attention_projections: the last parts of the names of the linear layers in these encoders' attention.
        single_file_layout: the names of the weights in a single-file checkpoint, or None if there is no such format.
        takes_face_adapter: whether diffusers can load a FaceID or InstantID adapter into the pipeline.
        takes_controlnet: whether `with_controlnet` can add InstantID's ControlNet.
        takes_diffedit: whether diffusers' DiffEdit pipeline can be made of the pipeline's parts.
        takes_ddim: whether `ddim_step` is known, which inverts pictures to noise.
        takes_image_to_image: whether diffusers has pipelines that add noise to a picture and denoise it, or a part.

    Args:
        pipeline: a diffusers pipeline in memory. Its denoiser is trained in place.
        source: the folder that the pipeline was read from. `save` copies all parts but the denoiser from it.
        dtypes: float type of each part's weights in the files they came from, by the part's name. `save` writes the
            part in that type. A part that is not named keeps the type it has in memory.
        location: the folder or file that the denoiser was read from; by default `source`. Messages name it.
        variant: which weight files of `source` were read, such as "fp16"; None for those without a suffix. `save` uses
            the same names.
        configurations: the folder that the configurations, tokenizers and scheduler were read from; by default
            `source`. `save` copies these files from there.

    Raises:
        UserError: the denoiser predicts something unknown, or takes more than the latents (an inpainting model).
    """

    name: ClassVar[str]
    pipeline_classes: ClassVar[tuple[str, ...]]
    denoiser_name: ClassVar[str]
    required_parts: ClassVar[tuple[str, ...]]
    block_names: ClassVar[tuple[str, ...]]
    attention_projections: ClassVar[tuple[str, ...]] = ("to_k", "to_q", "to_v", "to_out.0")
    cross_attention_weights: ClassVar[tuple[str, ...]]
    key_value_weights: ClassVar[tuple[str, ...]]
    prediction_type: str
    prompt_tokenizer: ClassVar[str] = "tokenizer"
    trainable_text_encoders: ClassVar[tuple[str, ...]] = ()
    text_attention_projections: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    single_file_layout: ClassVar[SingleFileLayout | None] = None
    takes_face_adapter: ClassVar[bool] = False
    takes_controlnet: ClassVar[bool] = False
    takes_diffedit: ClassVar[bool] = False
    takes_ddim: ClassVar[bool] = False
    takes_image_to_image: ClassVar[bool] = True

    def __init__(
        self,
        pipeline: Any,
        *,
        source: Path | None = None,
        dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
        location: str | Path | None = None,
        variant: str | None = None,
        configurations: Path | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.source = source
        self.configurations = configurations or source
        self.origin = Path(location) if location is not None else source
        self.location = str(self.origin or "this pipeline")
        self.dtypes = dtypes
        self.variant = variant
        self.num_train_timesteps: int = pipeline.scheduler.config.get("num_train_timesteps", 0)
        self.vae_scale: int = pipeline.vae_scale_factor  # pixels per latent position, along one side
        self.check_pipeline()
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.denoiser_name:
                part.eval().requires_grad_(False)
        pipeline.set_progress_bar_config(disable=True)

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.denoiser.parameters())
        return f"{type(self).__name__}({self.location!r}, {weights:,} weights in the {self.denoiser_name})"

    def check_pipeline(self) -> None:
        """Check that the pipeline can be trained as this family trains it, and that its parts fit each other.

        Raises:
            UserError: the denoiser takes other channels than the VAE's latents have, as an inpainting model does, or
                returns others; it takes embeddings of another width than the text encoders give; or a tokenizer makes
                more tokens than its text encoder takes.
        """
        check_fit(self)

    def prompt_widths(self) -> dict[str, tuple[int, int]]:
        """The widths of what the denoiser reads of the prompt: {name: (the denoiser takes, the text encoders give)}.

        They are compared before any work starts. A family that leaves this empty has no such check.
        """
        return {}

    @property
    def training_target(self) -> str:
        """What the denoiser predicts, and from which noise, in words. Only models with the same words are compared."""
        return self.prediction_type

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the denoiser takes."""
        return self.denoiser.config.in_channels

    @property
    def denoiser(self) -> Any:
        """The part that is trained."""
        return getattr(self.pipeline, self.denoiser_name)

    def with_denoiser(self, denoiser: nn.Module) -> Self:
        """The same family with another denoiser, such as an attacked copy. All other parts are shared."""
        return self.replace(**{self.denoiser_name: denoiser})

    def replace(self, **parts: Any) -> Self:
        """The same family with other parts, given under the pipeline's names for them. The remaining parts are shared.

        New parts are frozen, except the denoiser. What is being trained in a shared part, such as a new word in a text
        encoder, stays so.
        The result keeps the folders that it was read from only if nothing but the denoiser was replaced, because `save`
        copies all parts but the denoiser from there.
        """
        # A shallow copy of a pipeline can hold other parts without being constructed anew.
        pipeline = copy.copy(self.pipeline)
        pipeline.register_modules(**parts)
        same = set(parts) <= {self.denoiser_name}
        places = {"source": self.source if same else None, "configurations": self.configurations if same else None}
        shared = [part for name, part in self.pipeline.components.items() if name not in parts]
        trained = [p for part in shared if isinstance(part, nn.Module) for p in part.parameters() if p.requires_grad]
        changed = type(self)(pipeline, **places, dtypes=self.dtypes, location=self.origin, variant=self.variant)
        for parameter in trained:
            parameter.requires_grad_(True)
        changed.drawing = self.drawing
        return changed

    def with_drawing(self, **options: Any) -> Self:
        """The same family, which always draws with these options of `sample`. All parts are shared."""
        changed = copy.copy(self)
        changed.drawing = {**self.drawing, **options}
        return changed

    def sampler_fault(self, steps: int | None = None) -> str | None:
        """What is wrong with the pipeline's sampler, as the end of a sentence; None if it draws right.

        The samplers of a family that does not override this are not checked.

        Args:
            steps: sampling steps that it is tried with. Default: as many as tell a right sampler from a wrong one.
        """
        return None

    @property
    def told_timesteps(self) -> int:
        """The number that the denoiser is told for pure noise: the timestep T, or 1 if it is told shares of T."""
        return self.num_train_timesteps

    def call_told(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What the pipeline tells the denoiser in a call of it.

        Args:
            args, inputs: the positional and the keyword arguments of the call.

        Returns:
            The timesteps as shares of the T training timesteps, which in a flow are the noise levels, `[B]` or `[]`,
            and the token embeddings of the prompts, `[B, L, D]`.
        """
        prompt = inputs["encoder_hidden_states"]
        told = args[1] if len(args) > 1 else inputs["timestep"]
        return torch.as_tensor(told, device=prompt.device) / self.told_timesteps, prompt

    def with_controlnet(self, controlnet: nn.Module) -> Self:
        """The same family, whose pipeline samples with a ControlNet. All parts are shared.

        Raises:
            NotImplementedError: the family has no ControlNet; then `takes_controlnet` is False.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no ControlNet")

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """The sides of pictures must be multiples of this many pixels."""

    # -- facts about the architecture ------------------------------------------------------------------------

    @classmethod
    def lora_layers(cls, denoiser: nn.Module, target: LoraTarget) -> list[str]:
        """The layers of the denoiser that a low-rank adapter is put on, as peft's `target_modules`.

        Args:
            denoiser: this family's denoiser or a copy of it.
            target: "attention" for the projections of the attention layers, "linear" for all linear layers, "conv" for
                all convolutional layers, "all" for both.

        Returns:
            The last parts of the layers' names for "attention", and whole names otherwise.
        """
        kinds = {"linear": (nn.Linear,), "conv": (nn.Conv2d,), "all": (nn.Linear, nn.Conv2d)}
        if target != "attention":
            return layer_names(denoiser, kinds[target])
        names = [name for name, _ in denoiser.named_modules()]
        return [end for end in cls.attention_projections if any(f".{name}".endswith(f".{end}") for name in names)]

    @classmethod
    def attention_layers(cls, denoiser: nn.Module) -> list[AttentionLayer]:
        """The attention layers of the denoiser, a copy or a wrapper of it, for `families.attention.watch_attention`."""
        return [AttentionLayer(name, layer) for name, layer in denoiser.named_modules() if is_attention(layer)]

    # -- latents ---------------------------------------------------------------------------------------------

    def posterior(self, images: Tensor) -> Posterior:
        """The distribution of the latents of images `[B, 3, H, W]` in [-1, 1], differentiably.

        It is in float32, in the scale that the denoiser works in. H and W must be multiples of `vae_scale`.
        """
        vae = self.pipeline.vae
        encoded = vae.encode(images.to(vae.device, vae.dtype))
        if "latents" in encoded:  # AutoencoderTiny encodes without randomness
            mean, std = encoded.latents, torch.zeros_like(encoded.latents)
        else:
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        dtype = torch.promote_types(vae.dtype, torch.float32)
        return Posterior((mean.to(dtype) - shift) * scale, std.to(dtype) * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `[B, C, h, w]`, in the denoiser's scale, to images `[B, 3, H, W]` in [0, 1], float32."""
        vae = self.pipeline.vae
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        images = vae.decode(latents.to(vae.device, vae.dtype)).sample
        return to_unit(images.float())

    # -- diffusion -------------------------------------------------------------------------------------------

    @staticmethod
    def timestep_density(total: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` of `total` timesteps the way the family is trained, by default uniformly: `[count]`."""
        return uniform_timesteps(total, count, generator)

    @property
    def draw_timesteps(self) -> DrawTimesteps:
        """The function that draws the timesteps of training.

        It holds no reference to the pipeline, so that it can be sent to other processes.
        """
        return partial(self.timestep_density, self.num_train_timesteps)

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """The signal-to-noise ratio (signal variance over noise variance) at timesteps `[B]`: `[B]`.

        Raises:
            NotImplementedError: the family does not say how much noise there is at a timestep.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell its noise levels")

    def x0_error_share(self, timesteps: Tensor) -> Tensor:
        """The squared error in the clean latents, as a multiple of the prediction's, at timesteps `[B]`: `[B]`.

        The prediction determines the clean latents x_0 together with x_t.

        Raises:
            NotImplementedError: the family does not say how much noise there is at a timestep.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell its noise levels")

    def ddim_step(self, latents: Tensor, prediction: Tensor, start: int, end: int) -> Tensor:
        """Go from one timestep to another without randomness (DDIM, Song et al. 2021), in either direction.

        Args:
            latents: x_start, `[B, C, h, w]`.
            prediction: the denoiser's prediction, `[B, C, h, w]`.
            start, end: timesteps from 0 to num_train_timesteps - 1.

        Returns:
            x_end, `[B, C, h, w]`.

        Raises:
            NotImplementedError: the family has no such step; then `takes_ddim` is False.
        """
        raise NotImplementedError(f"{type(self).__name__} has no DDIM step")

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy latents x_t of the forward process.

        Args:
            latents: clean latents x_0, `[B, C, h, w]`.
            noise: standard normal noise, `[B, C, h, w]`.
            timesteps: `[B]`, from 0 to num_train_timesteps - 1.

        Returns:
            x_t, `[B, C, h, w]`.
        """

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target: what the denoiser should predict from `add_noise` of the same arguments.

        Returns:
            `[B, C, h, w]`: the noise or a velocity, depending on the model.
        """

    @abstractmethod
    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Call a denoiser on noisy latents.

        Args:
            denoiser: this family's denoiser, or a copy or a wrapper of it.
            noisy: x_t, `[B, C, h, w]`.
            timesteps: `[B]`, from 0 to num_train_timesteps - 1.
            prompt_embeds: `[B, L, D]` from `encode_prompts`.

        Returns:
            The prediction, `[B, C, h, w]`, to be compared with `target`.
        """
