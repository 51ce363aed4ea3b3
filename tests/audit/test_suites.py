"""Which attacks of the suites the verdict needs."""

from __future__ import annotations

from apdm.audit.inputs.suites import FIELD, SUITES


def test_suites_require_all_but_what_wins_by_definition_what_was_trained_elsewhere_and_what_is_weak_on_many_bases():
    optional = {entry.spec for entries in SUITES.values() for entry in entries if not entry.required}
    merged = {f"interpolation:source=base,alpha={share}" for share in ("0.5", "1")}
    elsewhere = {"transfer:attack=lora", "transfer:attack=textual_inversion"}
    slow = {f"{name}:learning_rate_factor=1/3" for name in ("dreambooth", "lora")}
    weak = {"textual_inversion", "custom_diffusion", "dreambooth:class_noun=face", "dreambooth:num_photos=4"}
    assert optional == {*merged, *elsewhere, *slow, *weak, "lora:learning_rate_factor=3", *FIELD}
    assert {entry.spec for entries in SUITES.values() for entry in entries if entry.white_box} == elsewhere


def test_suites_try_on_other_people_what_they_may_do_with_a_hardened_model():
    carried = "transfer:attack=lora"  # a LoRA that was published for the base, and is loaded into the hardened model
    for name in ("standard", "full"):
        assert {entry.spec for entry in SUITES[name] if entry.others} == {"dreambooth", "lora", carried}
