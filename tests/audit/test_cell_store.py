"""Finished attacks on disk: what is kept, forgotten, taken from earlier audits; and the results' schema."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from apdm.audit import read_results
from apdm.audit.results.store import CellStore, key_of, tensor_hash
from apdm.core.errors import UserError
from apdm.core.pictures import at_most


def test_a_cell_comes_back_as_it_was_with_its_pictures_in_eight_bits(tmp_path: Path):
    store, images = CellStore(tmp_path), torch.rand(3, 3, 5, 7)
    store.save("k", {"status": "ok", "mean": 0.1}, {"attacked": images})
    row, pictures = store.load("k")
    assert "k" in store and row == {"status": "ok", "mean": 0.1}
    assert torch.equal(pictures["attacked"], (images * 255).round() / 255)


def test_the_row_of_a_cell_is_read_without_its_pictures(tmp_path: Path):
    """Those of all cells together may be more than the memory holds."""
    store = CellStore(tmp_path)
    store.save("k", {"status": "ok"}, {"attacked": torch.rand(3, 3, 5, 7)})
    (tmp_path / "k" / "attacked.png").unlink()
    row, pictures = store.load("k")
    assert row == {"status": "ok"} and "attacked" in pictures and "course" not in pictures
    with pytest.raises(FileNotFoundError):
        pictures["attacked"]


def test_large_pictures_of_a_course_are_scaled_and_small_ones_kept():
    images = torch.rand(2, 3, 40, 60)
    assert at_most(images, 60) is images
    small = at_most(images, 30)
    assert small.shape == (2, 3, 20, 30) and small.min() >= 0 and small.max() <= 1
    assert torch.allclose(small.mean(), images.mean(), atol=0.01)


def test_failed_cells_and_those_of_other_audits_are_forgotten_and_the_rest_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store = CellStore(tmp_path)
    for key, status in (("good", "ok"), ("bad", "failed"), ("other", "ok")):
        store.save(key, {"status": status}, {})
    store.save("class", {"finite": True}, {})
    (tmp_path / "torn").mkdir()
    store.tidy({"good", "bad", "torn"})
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    assert "1 finished attack is deleted" in caplog.text
    caplog.clear()
    store.tidy({"good"})
    assert not caplog.text


def test_finished_cells_of_earlier_audits_are_copied_and_failed_and_unknown_ones_are_not(tmp_path: Path):
    earlier, images = CellStore(tmp_path / "earlier"), torch.rand(2, 3, 4, 4)
    for key, status in (("good", "ok"), ("bad", "failed"), ("other", "ok")):
        earlier.save(key, {"status": status, "mean": 0.5}, {"attacked": images})
    (tmp_path / "earlier" / "torn").mkdir()
    here = CellStore(tmp_path / "here", earlier=[tmp_path / "absent", earlier.folder])
    here.save("mine", {"status": "ok"}, {})
    records = {"cut": '{"row": {"sta', "foreign": '{"format": 1}', "list": "[]", "number": '{"row": 3}'}
    for damaged, record in records.items():
        (here.folder / damaged).mkdir()
        (here.folder / damaged / "cell.json").write_text(record)
    here.tidy({"good", "bad", "torn", "mine", *records})
    assert sorted(path.name for path in here.folder.iterdir()) == ["good", "mine"]
    assert here.load("good")[0]["mean"] == 0.5
    assert torch.equal(here.load("good")[1]["attacked"], earlier.load("good")[1]["attacked"])
    assert sorted(path.name for path in earlier.folder.iterdir()) == ["bad", "good", "other", "torn"]  # only read


def test_what_is_copied_from_earlier_audits_is_told_and_nothing_here_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    earlier = CellStore(tmp_path / "earlier")
    for key in ("new", "mine"):
        earlier.save(key, {"status": "ok", "mean": 0.5}, {})
    here = CellStore(tmp_path / "here", earlier=[earlier.folder])
    here.save("mine", {"status": "ok", "mean": 0.1}, {})
    with caplog.at_level(logging.INFO):
        here.tidy({"new", "mine", "absent"})
    assert "here: 1 of 3 are taken from earlier audits" in caplog.text
    assert (here.load("new")[0]["mean"], here.load("mine")[0]["mean"]) == (0.5, 0.1)


def test_a_cell_is_claimed_once_and_not_after_it_is_finished(tmp_path: Path):
    first, second = (CellStore(tmp_path / "run" / "cells", process=number) for number in (0, 1))
    assert first.claim("k") and not second.claim("k") and not first.claim("k")
    first.save("k", {"status": "ok"}, {})
    assert not second.claim("k") and not first.claim("k")
    assert [path.name for path in first.folder.iterdir()] == ["k"]  # no claim is left
    assert second.claim("other")
    first.tidy({"k", "other"})
    assert first.claim("other")


def test_a_store_for_keys_that_are_not_known_keeps_what_is_whole_and_not_to_be_run_again(tmp_path: Path):
    store = CellStore(tmp_path)
    for key, status in (("good", "ok"), ("bad", "failed")):
        store.save(key, {"status": status}, {})
    (tmp_path / "torn").mkdir()
    store.ready(again=lambda row: False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good"]
    store.ready(again=lambda row: row["status"] == "failed")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_key_changes_with_every_fact_and_not_with_their_order():
    facts = {"spec": "lora", "seed": 0}
    assert key_of(facts) == key_of(dict(reversed(facts.items())))
    assert len({key_of(facts), key_of(facts | {"seed": 1}), key_of(facts | {"spec": "x"})}) == 3
    photos = torch.rand(2, 3)
    others = photos.T, photos.reshape(3, 2), photos + 1e-6, None
    assert len({tensor_hash(photos), *map(tensor_hash, others)}) == 5


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 2}', "{}", '{"schema": 1}'])
def test_results_of_another_schema_are_refused(content: str, tmp_path: Path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match="results.json"):
        read_results(tmp_path / "results.json")
