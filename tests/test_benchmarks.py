"""The yardstick does the work it is said to do, and the benchmark reports."""

import json
from statistics import median

import pytest
import torch

from apdm.families import load_family
from benchmarks import architectures, attacks, cost, distributed, l2p_parts, l2p_speed
from benchmarks.reference_loop import ReferenceLoop


@pytest.fixture
def loop(tiny_pipeline) -> ReferenceLoop:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 3, 16, 16, generator=generator) * 2 - 1
    return ReferenceLoop(load_family(tiny_pipeline), *images, generator, inner_steps=2, leak=False)


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
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "| base | lora | 0.01 | 2 | 100 | 0.30 / 0.30 | 0.50 / 0.50 | 1.00 |"
    )


def test_each_change_is_predicted_to_save_what_its_parts_cost():
    """Parts that cost 1 each: 6 + 4 + 5 + 2 + 1 + 1 + 1 + 1/10 at first; then the savings one after another."""
    names = ("encode a picture", "encode a prompt", "forward, without gradients", "forward with a graph")
    names += ("two forwards in one batch, without gradients", "forward and backward", "AdamW's step")
    names += ("two forwards and backwards in one batch", "three forwards and backwards in one batch")
    names += ("add a gradient, tensor by tensor", "add a gradient, foreach")
    names += ("copy the model, new AdamW", "copy in place, moments to zero")
    steps = list(l2p_parts.predictions(dict.fromkeys(names, 1.0), inner_steps=10).values())
    assert steps == pytest.approx([20.1, 10.1, 9.1, 8.1, 5.1, 5.1, 5.1])


def test_the_parts_are_timed(tiny_pipeline, tmp_path, capsys):
    output = tmp_path / "parts.json"
    options = f"--repeats 1 --device cpu --output {output}".split()
    l2p_parts.main(["--pretrained_model_name_or_path", str(tiny_pipeline), *options])
    result = json.loads(output.read_text())
    assert min(result["parts"].values()) > 0 and set(result["parts"]) >= {"encode a picture", "AdamW's step"}
    assert "theta' copied in place" in capsys.readouterr().out


def test_costs_are_counted_on_the_published_architectures():
    """Published parameter counts in millions; the inner step is 17 forward passes, and bytes are 4 a parameter."""
    found = {name: cost.count(name) for name in ("sd15", "sdxl")}
    assert [round(r["parameters"] / 1e6) for r in found.values()] == [860, 2567]
    for result in found.values():
        assert result["inner_step_tflop"] == pytest.approx(17 * result["forward_tflop"])
        assert result["weights_and_moments_gb"] == pytest.approx(36 * result["parameters"] / 1e9)


def test_a_published_architecture_is_built_whole_and_small_enough_to_try(monkeypatch):
    """The pipeline's wiring at reduced widths: the real ones take minutes to fill with random numbers."""
    narrow = {"block_out_channels": (32, 32, 32, 32), "attention_head_dim": 4, "sample_size": 16}
    monkeypatch.setitem(architectures.UNETS, "sd15", architectures.UNETS["sd15"] | narrow)
    family = architectures.family("sd15")
    latents = torch.zeros(1, 4, 16, 16)
    embeds = family.encode_prompts(["a photo of sks person"])
    assert embeds.shape == (1, 77, 768)
    assert family.predict(family.denoiser, latents, torch.tensor([5]), embeds).shape == latents.shape
