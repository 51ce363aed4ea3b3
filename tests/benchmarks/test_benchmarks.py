"""The yardstick does the work it is said to do, and the benchmark reports."""

import json
from statistics import median

import pytest
import torch

from apdm.config.plugins import PROTECTIONS
from apdm.families import load_family
from benchmarks import attacks, distributed, image_layer, l2p_speed
from benchmarks.reference_loop import ReferenceLoop


@pytest.fixture
def loop(tiny_pipeline) -> ReferenceLoop:
    generator = torch.Generator().manual_seed(0)
    one, two, three = torch.rand(3, 2, 3, 16, 16, generator=generator) * 2 - 1
    return ReferenceLoop(load_family(tiny_pipeline), one, two, three, generator, inner_steps=2, leak=False)


def counting(function, name, calls):
    def counted(*args):
        calls[name] += 1
        return function(*args)

    return counted


def test_the_reference_loop_does_the_work_of_the_released_one(loop, monkeypatch):
    calls = {"predict": 0, "posterior": 0, "encode_prompts": 0}
    for name in calls:
        monkeypatch.setattr(loop.family, name, counting(getattr(loop.family, name), name, calls))
    loop.outer_step()
    assert calls == {"predict": 8 * 2, "posterior": 6 * 2, "encode_prompts": 4 * 2}


def test_the_reference_loop_moves_theta_and_not_phi(loop):
    start = [p.detach().clone() for p in loop.slow.parameters()]
    loop.outer_step()
    assert all(torch.equal(a, b) for a, b in zip(start, loop.reference.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(start, loop.slow.parameters(), strict=True))


def test_the_speed_benchmark_writes_what_it_measured(tiny_pipeline, tmp_path, capsys):
    output = tmp_path / "speed.json"
    options = f"--inner_steps 1 --outer_steps 2 --device cpu --no-memory --output {output}".split()
    l2p_speed.main(["--pretrained_model_name_or_path", str(tiny_pipeline), *options])
    result = json.loads(output.read_text())
    assert all(len(times) == 2 and min(times) > 0 for times in result["seconds_per_outer_step"].values())
    rate = 17 * l2p_speed.forward_operations(
        l2p_speed.parse(["--pretrained_model_name_or_path", str(tiny_pipeline)])[0]
    )
    assert result["tflops"] == pytest.approx(rate / 1e12 / median(result["seconds_per_outer_step"]["apdm"]))
    assert result["ratio_of_medians"] > 0 and "ratio of medians" in capsys.readouterr().out


def test_the_buffers_that_the_scaling_table_counts_are_those_that_one_process_holds():
    figures = distributed.measure("one process", inner_steps=1, outer_steps=1)
    # theta', the attacker's two moments, phi, theta, G and theta's two moments; a checkpoint has theta and its moments.
    assert figures["buffers"] == pytest.approx(8, abs=0.05)
    assert figures["checkpoint_size"] == pytest.approx(3, abs=0.05)
    assert not figures["sent"]
    assert "| one process | 8.0" in distributed.table({"one process": figures})


def attack_row(person: int, likeness: float) -> dict[str, object]:
    seen = {"mean": likeness, "match_rate": 0.5, "face_rate": 1.0}
    return {
        "model": "base",
        "attack": "lora",
        "person": person,
        "seed": 0,
        "photos": 4,
        "params": {"learning_rate": 0.01},
        "curve": {"0": dict.fromkeys(attacks.ENCODERS, seen), "100": dict.fromkeys(attacks.ENCODERS, seen)},
    }


def test_the_attacks_benchmark_makes_no_row_twice_and_sums_up_over_people(tmp_path, monkeypatch, capsys):
    rows, output = [attack_row(0, 0.2), attack_row(1, 0.4)], tmp_path / "rows.jsonl"
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("sys.argv", f"x --output {output} --attacks lora --people 2".split())
    attacks.main()
    assert attacks.read(output) == rows
    monkeypatch.setattr("sys.argv", f"x --output {output} --summary".split())
    attacks.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "| base | lora | 0.01 | 2 | 100: 0.30 / 0.30 (0.50 / 0.50) | not by 100 |"


def test_every_photo_protection_is_an_arm_of_the_study() -> None:
    methods = {made.method for arm, made in image_layer.ARMS.items() if made is not None and arm == made.method}
    assert methods == set(PROTECTIONS.classes())


def test_the_image_layers_table_counts_people_and_not_their_seeds_and_compares_in_pairs():
    def row(arm: str, person: int, seed: int, likeness: float) -> dict:
        figures = {"mean": likeness, "detected_mean": likeness, "match_rate": 1.0, "face_rate": 1.0}
        seen = dict.fromkeys(image_layer.ENCODERS, figures)
        return {"attack": "faceid", "arm": arm, "person": person, "seed": seed, "likeness": {"adapter": seen}}

    rows = [row("clean", 0, 0, 0.9), row("clean", 0, 1, 0.7), row("clean", 1, 0, 0.4), row("clean", 2, 0, 0.3)]
    rows += [row("faces", 1, 0, 0.1), row("faces", 0, 0, 0.2), row("faces", 0, 1, 0.0)]
    _, _, clean, faces = ([cell.strip() for cell in line.split("|")[1:-1]] for line in image_layer.summary(rows))
    assert clean[3:7] == ["3", "", "0.50 / 0.50", ""]  # .8, .4 and .3
    # Pairs: .8 to .1 and .4 to .1. Resampled, the mean lies in .3 to .7; of two values, .2 is stretched 9.17 times.
    assert faces[3:7] == ["2", "", "0.10 / 0.10", "0.50 (-1.33 to 2.33) / 0.50 (-1.33 to 2.33)"]
