"""Options about models, networks for faces and processes that several commands have with the same words."""

from __future__ import annotations

from typing import Any

from apdm.config.options import option


def family_option() -> Any:
    """Declare the option `family`."""
    return option(
        None,
        'The model family: a name such as "stable-diffusion-xl", or file.py:MyFamily for a class in a file of your '
        "own. By default the family that handles the pipeline class of the model.",
        holds="spec",
    )


def single_file_config_option(whose: str, belonging: str) -> Any:
    """Declare the option `single_file_config`.

    Args:
        whose: which models the option is for, in words.
        belonging: to what the files in the folder belong, in words.
    """
    return option(
        None,
        f"Only for {whose}: a pipeline folder with the configurations, tokenizers and scheduler that belong to "
        f"{belonging}. By default diffusers guesses the model type and loads these files from the Hub. A file of the "
        "transformer alone (FLUX, Z-Image) needs it: text encoders and VAE come from there too.",
        holds="path",
    )


def allow_pickle_option() -> Any:
    """Declare the option `allow_pickle`."""
    return option(
        False,
        "Load .bin and .pt weights where no safetensors exist. Loading a pickle can run any code that its author put "
        "in it, so allow it only for files that you trust.",
    )


def num_threads_option(more: str = "") -> Any:
    """Declare the option `num_threads`. `more` is put at the end of its help."""
    return option(
        None,
        "CPU threads of each process. By default OMP_NUM_THREADS or MKL_NUM_THREADS if you set it; otherwise the "
        f"processors that the run may use are divided equally among its processes.{more}",
        at_least=1,
        at_most=1024,
    )


def faces_option(first: str) -> Any:
    """Declare the option `faces`. `first` says what the pack that is given first does."""
    return option(
        [],
        f"The networks for photos of real faces. First an unpacked InsightFace pack, such as buffalo_l: {first}. All "
        "entries judge likeness. The others may be single recognisers: .onnx, or a MobileFaceNet's .safetensors or "
        ".pt. PATH=THRESHOLD gives the cosine of a match, where the file's own is not known. By default the bundled "
        "networks, which know only the drawn people of the miniature world.",
        holds="spec",
        common="faces and judges",
    )
