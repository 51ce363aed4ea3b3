"""The names that diffusers' script train_dreambooth.py has for the options of `apdm harden`."""

from __future__ import annotations

from pathlib import Path

import pytest

from apdm.config import AuditJobConfig, HardenConfig, PerturbConfig, load_config
from apdm.config.diffusers_names import OPTIONS, SAME, page
from apdm.config.options import options_by_path
from apdm.core.errors import UserError

ROOT = Path(__file__).parents[2]
KNOWN = options_by_path(HardenConfig)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_the_table_says_of_an_option_is_true(name: str) -> None:
    instead = OPTIONS[name]
    assert (instead is SAME) == (name in KNOWN), "the table in apdm/config/diffusers_names.py needs another line"
    if instead is SAME:
        return
    for used in instead.use:
        option, *value = used.split()
        if value:
            KNOWN[option].fit(KNOWN[option].parse(value), "in the table")
        assert option in KNOWN
    with pytest.raises(UserError) as error:
        load_config(HardenConfig, [f"--{name}", "5"])
    said = str(error.value)
    assert said.startswith(f'there is no option "{name}" (on the command line); ') and instead.why in said
    assert all(used in said for used in instead.use)


def test_the_message_says_what_to_use() -> None:
    for argv, message in (
        (["--validation_prompt", "a"], "use validation.prompts (a list of prompts)"),
        (["--use_8bit_adam"], "use l2p.optimizer adamw8bit (the preset for 24 GB sets it too)"),
        (["--center_crop"], "leave it out: photos are always cropped at the centre"),
    ):
        with pytest.raises(UserError) as error:
            load_config(HardenConfig, argv)
        assert str(error.value) == f'there is no option "{argv[0][2:]}" (on the command line); {message}'


def test_a_file_gets_the_same_message(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("snr_gamma: 5\n")
    with pytest.raises(UserError, match="leave it out: the loss that protects compares errors at one noise level"):
        load_config(HardenConfig, ["--config", str(tmp_path / "c.yaml")])


def test_other_commands_name_no_option_that_they_do_not_have() -> None:
    for config in (AuditJobConfig, PerturbConfig):
        with pytest.raises(UserError, match='unknown option "validation_prompt"'):
            load_config(config, ["--validation_prompt", "a"])


def test_the_page_of_the_documents_is_the_table() -> None:
    mend = "run: python -m apdm.config.reference docs/reference/diffusers-options.md"
    assert (ROOT / "docs/reference/diffusers-options.md").read_text(encoding="utf-8") == page(), mend
