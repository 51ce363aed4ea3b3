"""The options that `apdm harden` and `apdm perturb` share."""

from __future__ import annotations

from dataclasses import dataclass, field

from apdm.config.image_layer import ImageLayerConfig
from apdm.config.options import option


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job over subjects takes."""

    pretrained_model_name_or_path: str = option(
        help="Pipeline folder, single-file checkpoint or Hub name of the model."
    )
    single_file_config: str | None = option(
        None,
        "With a single file: the pipeline folder whose configurations, tokenizers and scheduler belong to it; without "
        "one the Hub is asked for those of the model that the file looks like.",
    )
    revision: str | None = option(None, "Branch, tag or commit on the Hub.")
    variant: str | None = option(None, 'Which files to load, such as "fp16".')
    allow_pickle: bool = option(False, "Load .bin and .pt weights where no safetensors exist; pickles can run code.")
    instance_data_dir: str = option(help="Folder of subjects, <id>/*.jpg, each with optional <id>/safe/ partners.")
    class_data_dir: str | None = option(
        None, "Class pictures, drawn by the base model up to num_class_images; default: in output_dir."
    )
    instance_prompt: str = option("a photo of sks person", "c_per: the prompt that simulated attackers learn with.")
    class_prompt: str = option("a photo of person", "c_pr: the prompt of the class pictures.")
    num_class_images: int = option(200, "Class pictures x_pr for prior preservation.", at_least=1)
    num_inference_steps: int = option(50, "Sampling steps of the class pictures.", at_least=1)
    guidance_scale: float = option(7.5, "Classifier-free guidance of the class pictures.", at_least=0)
    sample_batch_size: int = option(4, "Pictures drawn at once.", at_least=1)
    resolution: int = option(
        512, "Side of the squares that a trainer makes of photos, in pixels.", at_least=16, multiple_of=8
    )
    output_dir: str = option(help="Where everything that is made goes.")
    overwrite_output_dir: bool = option(False, "Replace an earlier run in output_dir.")
    seed: int = option(0, "Of every random choice.", at_least=0, below=2**32)
    num_threads: int | None = option(
        None,
        "CPU threads; default: all cores, whatever the launcher sets, so that results repeat.",
        at_least=1,
    )
    image_layer: ImageLayerConfig = field(default_factory=ImageLayerConfig)

    @property
    def base(self) -> str:
        """The model that nothing was done to."""
        return self.pretrained_model_name_or_path
