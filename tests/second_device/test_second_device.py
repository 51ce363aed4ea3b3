"""Jobs on an accelerator, without a GPU: `device.cpp` says how. They do there what they do on the CPU.

Whole runs are other processes, because a process has one accelerator. Other tests run on this device too, with the
folder that `second_device` makes in front of PYTHONPATH: most of those of the jobs and the audit pass.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PIPELINE = ROOT / "apdm/portraits/weights/pipeline"


@pytest.fixture(scope="module")
def second_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that makes torch find the device when it is on PYTHONPATH."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    site = tmp_path_factory.mktemp("site")
    libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
    words = [compiler, "-std=c++20", "-shared", "-fPIC", "-w", *(f"-I{path}" for path in include_paths())]
    words += [str(HERE / "device.cpp"), "-o", str(site / "second_device.so"), *libraries]
    built = subprocess.run(words, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    shutil.copy(HERE / "backend.py", site / "torch_sdaa.py")
    facts = site / "torch_sdaa-0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-sdaa\nVersion: 0\n")
    (facts / "entry_points.txt").write_text("[torch.backends]\ntorch_sdaa = torch_sdaa:load\n")
    return site


def run(words: Sequence[object], *sites: Path) -> str:
    """Run Python with these words and folders, and return what it wrote to standard error."""
    path = os.pathsep.join(str(folder) for folder in (*sites, ROOT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


REFUSED = """
import torch
from apdm.core.devices import free_memory, is_accelerator, random_state_kept, send, to_float64, widest_float

here = torch.accelerator.current_accelerator()
there, on_cpu = torch.ones(4, 4, device=here), torch.ones(4, 4)
for refused in (
    lambda: there + on_cpu,
    lambda: on_cpu @ there,
    lambda: torch.conv1d(there[None], on_cpu[None]),
    lambda: on_cpu[there.long()],
    lambda: torch.randn(2, generator=torch.Generator(), device=here),
    lambda: torch.nn.functional.linear(there, on_cpu),
    there.double,
):
    try:
        refused()
    except (RuntimeError, TypeError, IndexError):
        continue
    raise SystemExit("an accelerator would have refused this")
assert torch.equal(there[torch.tensor([0, 1])].cpu(), on_cpu[:2])
drawn = torch.randn(3, generator=torch.Generator(here).manual_seed(1), device=here).cpu()
assert torch.equal(drawn, torch.randn(3, generator=torch.Generator().manual_seed(1)))

assert is_accelerator(here) and send(on_cpu, here).device.type == here.type
assert widest_float(here) == torch.float32 and widest_float(torch.device("cpu")) == torch.float64
assert torch.equal(to_float64(there), on_cpu.double())
with random_state_kept():
    inside = torch.rand(3, device=here).cpu()
assert torch.equal(inside, torch.rand(3, device=here).cpu())
free_memory()
"""


def test_it_refuses_what_accelerators_refuse_and_has_no_float64(second_device: Path) -> None:
    run(["-c", REFUSED], second_device)


def test_a_demo_makes_there_what_it_makes_on_the_cpu(second_device: Path, tmp_path: Path) -> None:
    cpu, there = tmp_path / "cpu", tmp_path / "there"
    words = ["-m", "apdm", "demo", "--size", "tiny", "--num_processes", 1, "--output_dir"]
    run([*words, cpu])
    assert "second device" in run([*words, there], second_device)
    ours, same, base = (_denoiser(folder) for folder in (cpu / "model", there / "model", PIPELINE))
    path = (ours - base).norm()
    assert path > 0
    assert (ours - same).norm() < 0.05 * path  # AdamW's first steps enlarge what rounding makes
    pictures = [file for kind in ("images", "class_images", "samples") for file in sorted((cpu / kind).rglob("*.png"))]
    assert len(pictures) > 8
    for file in pictures:
        one, other = (np.asarray(Image.open(f).convert("RGB"), float) for f in (file, there / file.relative_to(cpu)))
        assert np.abs(one - other).mean() < 0.1  # of 255


def _denoiser(pipeline: Path) -> torch.Tensor:
    stored = load_file(pipeline / "unet/diffusion_pytorch_model.safetensors")
    return torch.cat([stored[name].double().flatten() for name in sorted(stored)])


ATTACKS = (
    *("lora:max_train_steps=1,train_text_encoder=true", "adaptive:max_train_steps=1", "rebalance"),
    *(
        "custom_diffusion:max_train_steps=1",
        "textual_inversion:max_train_steps=1",
        "encoder_lora:max_train_steps=1,vae_steps=1",
    ),
    *("img2img:strength=0.9", "diffedit", "masactrl:start_step=1,start_layer=2", "faceid"),
)


def test_attacks_run_there(second_device: Path, tmp_path: Path) -> None:
    people, adapter = tmp_path / "people", ROOT / "apdm/portraits/weights/faceid-adapter.safetensors"
    run(["-m", "apdm.portraits.subjects", "--output_dir", people])
    words = ["-m", "apdm", "attack", PIPELINE, "--config", ROOT / "configs/attack-portrait.yaml", "--photos", people]
    words += ["--faceid_adapter", adapter, "--max_train_steps", 1, "--num_images", 2, "--num_class_images", 2]
    words += ["--num_inference_steps", 2, "--output_dir", tmp_path / "out", "--attack", *ATTACKS]
    assert "second device" in run(words, second_device)
    done = json.loads((tmp_path / "out/attack.json").read_text())
    assert len(done["attacks"]) == len(ATTACKS)
