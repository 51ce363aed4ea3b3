"""Fixtures shared by all tests: a Stable Diffusion pipeline of the real classes at toy size, and float64."""

import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

import torch
from flux_width import any_width
from tiny_pipelines import BUILDERS, build_pipeline

gc.disable()  # until the tests begin: see `apdm.core.quick_imports`

# Tests send these signals. They are ignored if the tests run in the background of a script or under nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but seldom, and not among what the imports made. Tests take a fifth less time."""
    gc.freeze()
    gc.set_threshold(20_000, 20)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A test that asks for an address outside this machine fails, whoever asks."""
    known, look_up = {"localhost", socket.gethostname(), "", None}, socket.getaddrinfo

    def local(host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in known and not str(name).startswith(("127.", "::", "0.0.0.0")):
            pytest.fail(f"a test asks the network for {name}")
        return look_up(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are not forced to the disk, since no test cuts the power. Killed processes lose nothing by it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # fails as fsync does if the file is not open
        yield


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors and modules are float64 for the length of the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def any_flux_width() -> Iterator[None]:
    """diffusers reads single files of FLUX.1 of any width, for the length of the test module."""
    with any_width():
        yield


@pytest.fixture(scope="session")
def make_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_pipeline(prediction_type="epsilon") -> a fresh folder with such a pipeline in it."""

    def make(prediction_type: str = "epsilon") -> Path:
        folder = tmp_path_factory.mktemp("pipeline")
        build_pipeline(folder, prediction_type).save_pretrained(folder / "model")
        return folder / "model"

    return make


@pytest.fixture(scope="session")
def tiny_pipeline(make_pipeline: Callable[..., Path]) -> Path:
    """The folder of one tiny epsilon pipeline, written once per session: read it, never write into it."""
    return make_pipeline()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folders(kind) -> the folder of that pipeline, written once: read it, never write into it."""
    written: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in written:
            written[kind] = tmp_path_factory.mktemp(kind) / "model"
            BUILDERS[kind](written[kind].parent).save_pretrained(written[kind])
        return written[kind]

    return folder


@pytest.fixture(scope="session")
def families(folders: Callable[[str], Path]) -> Callable[[str], Any]:
    """families(kind) -> that pipeline loaded, once: read it, never change it."""
    loaded: dict[str, Any] = {}

    def family(kind: str) -> Any:
        if kind not in loaded:
            from apdm.families import load_family

            loaded[kind] = load_family(folders(kind))
        return loaded[kind]

    return family


@pytest.fixture(scope="session")
def noise_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One subject with three photos of noise."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("people") / "subjects"
    (folder / "s01").mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / "s01" / f"{number}.png")
    return folder
