"""Time for one photo and peak memory of every photo protection, compared with ASPL in the same run.

    python -m benchmarks.image_cost --instance_data_dir outputs/demo-subjects/protected

Each measurement is one run of `apdm perturb` with configs/dladiff-portrait.yaml, in a process of its own. All methods
run once before any of them runs again, so that a busy machine slows all of them alike. Step counts are those of the
file, and otherwise the defaults.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

RUNS: dict[str, list[str]] = {
    "aspl": ["--image_layer.method", "aspl", "--image_layer.zero_shot.enabled", "false"],
    "fsmg": ["--image_layer.method", "fsmg", "--image_layer.zero_shot.enabled", "false"],
    "encoder": ["--image_layer.method", "encoder", "--image_layer.zero_shot.enabled", "false"],
    "anti_diffusion": ["--image_layer.method", "anti_diffusion", "--image_layer.zero_shot.enabled", "false"],
    "dladiff, layer 1": ["--image_layer.zero_shot.enabled", "false"],
    "dladiff, layer 2": ["--image_layer.method", "none"],
    "dladiff, both": [],
}


def once(flags: list[str], photos: Path, threads: int) -> tuple[float, float]:
    """Run `apdm perturb` once. Returns the seconds for one photo and the peak memory in GB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "apdm", "perturb", "--config", "configs/dladiff-portrait.yaml"]
        command += ["--instance_data_dir", str(photos), "--output_dir", f"{folder}/out", "--num_threads", str(threads)]
        subprocess.run([*command, *flags], check=True, capture_output=True)
        facts = json.loads(Path(folder, "out/perturbation.json").read_text())
    return facts["seconds_per_photo"], facts["peak_memory_bytes"] / 1e9


def main() -> None:
    """Measure every method and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instance_data_dir", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in RUNS}
    for _ in range(options.repeats):
        for name, flags in RUNS.items():
            found[name].append(once(flags, options.instance_data_dir, options.num_threads))
    reference = median(seconds for seconds, _ in found["aspl"])
    print("| method | seconds per photo | ratio to ASPL | peak memory |")
    print("| --- | --- | --- | --- |")
    for name, runs in found.items():
        seconds, memory = median(s for s, _ in runs), max(m for _, m in runs)
        print(f"| {name} | {seconds:.1f} | {seconds / reference:.2f} | {memory:.2f} GB |")


if __name__ == "__main__":
    main()
