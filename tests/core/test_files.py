"""Nothing is ever half written, and nothing that is not ours is touched."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from apdm.core import disk, files
from apdm.core.errors import UserError
from apdm.core.model_path import local_model

DEAD_PID = 2**22 + 7  # above Linux' largest process id


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files.list_files(folder)}


def old_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights").write_text("old")
    return folder


def test_a_file_is_replaced_whole_and_no_partial_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    with files.write_beside(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.name == path.name and partial.parent.name == f".results.json.partial-{os.getpid()}"
    assert content(tmp_path) == {"results.json": "new"}


def test_json_is_strict_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "there.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_files_are_listed_in_the_order_of_their_whole_names(tmp_path: Path) -> None:
    names = ["a-b", "a/x", "a/y", "a0"]
    for name in reversed(names):
        files.write_text(tmp_path / name, "")
    assert list(content(tmp_path)) == names


def test_a_folder_is_replaced_whole_and_files_of_the_old_one_do_not_linger(tmp_path: Path) -> None:
    folder = old_folder(tmp_path)
    with files.write_beside(folder, folder=True) as partial:
        (partial / "vae").write_text("new")
        assert content(folder) == {"unet/weights": "old"}
    assert content(tmp_path) == {"model/vae": "new"}


def test_all_that_is_new_is_on_the_disk_before_the_old_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a loss of power could leave empty files in the place of the old ones."""
    done: list[Path] = []
    sync, rename = os.fsync, os.replace

    def noted_sync(file: int) -> None:
        sync(file)
        done.append(Path(os.readlink(f"/proc/self/fd/{file}")))

    def noted_rename(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    folder = old_folder(tmp_path)
    with files.write_beside(folder, folder=True) as partial:
        (partial / "vae").mkdir()
        (partial / "vae" / "weights").write_text("new")
    flushed = {partial / "vae" / "weights", partial / "vae", partial}
    assert set(done[:3]) == flushed and done[3:] == [partial.with_name("model.old"), folder, tmp_path]


def test_an_error_in_the_middle_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    folder = old_folder(tmp_path)
    with pytest.raises(KeyboardInterrupt), files.write_beside(folder, folder=True) as partial:
        (partial / "half").write_text("half")
        raise KeyboardInterrupt
    assert content(tmp_path) == {"model/unet/weights": "old"}


def test_a_write_within_a_write_stays_inside_its_stage(tmp_path: Path) -> None:
    folder = old_folder(tmp_path)
    with files.write_beside(folder, folder=True) as partial:
        with files.write_beside(partial, folder=True) as inner:
            (inner / "vae").write_text("new")
            assert len(list(tmp_path.iterdir())) == 2
        assert content(partial) == {"vae": "new"}
    assert content(tmp_path) == {"model/vae": "new"}


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = old_folder(tmp_path)
    rename = os.replace

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if Path(source).parent.name.startswith(".model.partial-") and Path(source).name == "model":
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(OSError, match="^no$"), files.write_beside(folder, folder=True) as partial:
        (partial / "vae").write_text("new")
    assert content(tmp_path) == {"model/unet/weights": "old"}


KILLED = """
import os, signal, sys
from apdm.core import disk, files
rename = os.replace
def die_after_stepping_aside(source, target):
    rename(source, target)
    if str(target).endswith("model.old"):
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "between the renames":
    os.replace = die_after_stepping_aside
with files.write_beside(sys.argv[1], folder=True) as partial:
    (partial / "vae").write_text("new")
    if sys.argv[2] == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["while writing", "between the renames"])
def test_a_killed_process_costs_nothing_of_the_old_folder(tmp_path: Path, moment: str) -> None:
    folder = old_folder(tmp_path)
    command = [sys.executable, "-c", KILLED, str(folder), moment]
    child = subprocess.run(command, cwd=Path(__file__).parents[2])
    assert child.returncode == -signal.SIGKILL
    assert any(".partial-" in entry.name for entry in tmp_path.iterdir())

    files.recover(tmp_path, "model")
    assert content(tmp_path) == {"model/unet/weights": "old"}


def test_the_next_write_clears_what_a_dead_run_left(tmp_path: Path) -> None:
    folder = old_folder(tmp_path)
    (tmp_path / f".model.partial-{DEAD_PID}").mkdir()
    with files.write_beside(folder, folder=True) as partial:
        (partial / "vae").write_text("new")
    assert content(tmp_path) == {"model/vae": "new"} and len(list(tmp_path.iterdir())) == 1


def test_the_partial_of_a_living_run_and_names_of_other_programs_stay(tmp_path: Path) -> None:
    kept = [f".model.partial-{os.getppid()}", f".notes.partial-{DEAD_PID}", ".model.old-3", "model.partial-4"]
    for name in kept:
        (tmp_path / name).write_text("kept")
    files.write_text(tmp_path / "model", "new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([*kept, "model"])


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    folder = old_folder(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with files.write_beside(link, folder=True) as partial:
        (partial / "vae").write_text("new")
    assert link.is_symlink() and content(folder) == {"vae": "new"}


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_the_hash_of_a_model_in_one_file_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    assert files.model_hash(path) == hashlib.sha256(b"weights").hexdigest()


def test_the_hash_of_a_model_depends_on_weights_and_their_names_alone(tmp_path: Path) -> None:
    for name, weight in [("a", "1"), ("b", "1"), ("c", "2")]:
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "w.safetensors").write_text(weight)
        (tmp_path / name / "config.json").write_text(name)
    equal, other = files.model_hash(tmp_path / "a"), files.model_hash(tmp_path / "c")
    assert equal == files.model_hash(tmp_path / "b") and equal != other
    (tmp_path / "b" / "unet" / "w.safetensors").rename(tmp_path / "b" / "unet" / "v.safetensors")
    assert files.model_hash(tmp_path / "b") != equal


def model(folder: Path, weight: str = "1") -> Path:
    for part in ("unet", "vae"):
        (folder / part).mkdir(parents=True)
        (folder / part / "w.safetensors").write_text(weight)
    return folder


def test_linked_parts_count_in_the_hash_of_a_model_as_copies_do(tmp_path: Path) -> None:
    plain, other = model(tmp_path / "plain"), model(tmp_path / "other", "2")
    linked = tmp_path / "linked"  # every part is a link to a folder
    linked.mkdir()
    for part in ("unet", "vae"):
        (linked / part).symlink_to(plain / part)
    assert files.model_hash(linked) == files.model_hash(plain)
    (linked / "unet").unlink()
    (linked / "unet").symlink_to(other / "unet")
    assert files.model_hash(linked) != files.model_hash(plain)


def test_a_folder_in_the_layout_of_the_hub_s_cache_has_the_hash_of_its_copy(tmp_path: Path) -> None:
    plain, snapshot = model(tmp_path / "plain"), tmp_path / "models--a--b" / "snapshots" / "0123"
    blob = tmp_path / "models--a--b" / "blobs" / "abcd"
    blob.parent.mkdir(parents=True)
    blob.write_text("1")
    for part in ("unet", "vae"):
        (snapshot / part).mkdir(parents=True)
        (snapshot / part / "w.safetensors").symlink_to("../../../blobs/abcd")
    assert files.model_hash(snapshot) == files.model_hash(plain)


def test_links_in_a_circle_and_to_nowhere_are_passed_over(tmp_path: Path) -> None:
    plain, folder = model(tmp_path / "plain"), model(tmp_path / "model")
    for name, target in [("itself", folder), ("above", tmp_path), ("disk", "/"), ("gone", "/nowhere/at/all")]:
        (folder / "unet" / name).symlink_to(target)
    (folder / "unet" / "loop").symlink_to("loop")
    assert files.model_hash(folder) == files.model_hash(plain)
    one, two = tmp_path / "one", tmp_path / "two"  # two folders that hold links to each other
    for here, there in [(one, two), (two, one)]:
        here.mkdir()
        (here / "file").write_text("")
        (here / "other").symlink_to(there)
    assert content(one) == {"file": "", "other/file": ""}
    assert files.list_files(one, follow_links=False) == [one / "file"]


def test_a_folder_without_weights_has_no_model_hash(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not_there"):
        with pytest.raises(UserError, match="no model weights"):
            files.model_hash(folder)


def test_a_file_a_folder_and_a_link_are_deleted_and_not_what_the_link_leads_to(tmp_path: Path) -> None:
    kept = old_folder(tmp_path)
    gone = [tmp_path / name for name in ("file", "folder", "link", "nothing")]
    gone[0].write_text("x")
    (gone[1] / "below").mkdir(parents=True)
    gone[2].symlink_to(kept)
    for path in gone:
        files.delete(path)
    assert list(tmp_path.iterdir()) == [kept] and content(kept) == {"unet/weights": "old"}


def test_a_disk_too_small_is_told_before_the_work(tmp_path: Path) -> None:
    disk.require_disk(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(UserError, match="GB free"):
        disk.require_disk(tmp_path / "not" / "yet" / "there", 10**18)


def test_a_new_and_an_empty_output_folder_are_claimed_and_claimed_again(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty"):
        assert "made by apdm" in (files.claim_output_dir(tmp_path / name) / files.MARKER).read_text()
        files.claim_output_dir(tmp_path / name)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_folder_that_is_not_ours_is_never_taken(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / f".thesis.partial-{DEAD_PID}").write_text("mine")
    with pytest.raises(UserError, match="not from this program"):
        files.claim_output_dir(tmp_path, overwrite)
    assert content(tmp_path) == {f".thesis.partial-{DEAD_PID}": "mine"}


def test_our_own_full_folder_is_taken_only_when_told_and_keeps_its_files(tmp_path: Path) -> None:
    files.claim_output_dir(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / f".model.partial-{DEAD_PID}").mkdir()
    with pytest.raises(UserError, match="--overwrite_output_dir"):
        files.claim_output_dir(tmp_path)
    files.claim_output_dir(tmp_path, overwrite=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [files.MARKER, "results.json"]


def test_where_a_run_was_stopped_the_way_on_is_told_before_the_way_that_deletes_it(tmp_path: Path) -> None:
    files.claim_output_dir(tmp_path)
    (tmp_path / "checkpoint-000004").mkdir()
    with pytest.raises(UserError) as fault:
        files.claim_output_dir(tmp_path)
    go_on, anew = (str(fault.value).find(option) for option in ("--resume_from_checkpoint latest", "--overwrite_"))
    assert 0 < go_on < anew and "deletes its checkpoints" in str(fault.value)


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        for take in (files.claim_output_dir, lambda path: files.check_output_dir(path, overwrite=True)):
            with pytest.raises(UserError, match="not a folder"):
                take(path)


def test_a_folder_that_the_system_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 300)
    with pytest.raises(UserError, match=r"cannot be created \(File name too long\): choose another"):
        files.claim_output_dir(folder)
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        files.list_files(folder)


@pytest.mark.parametrize(
    ("flags", "mend"),
    [(0, "mend its permissions or choose"), (os.ST_RDONLY, "its disk is mounted read-only")],
)
def test_a_folder_that_cannot_be_written_is_told_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, mend: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    for path in (tmp_path, tmp_path / "new"):
        with pytest.raises(UserError, match=mend):
            files.check_output_dir(path, overwrite=False)


def test_a_path_that_safetensors_cannot_use_is_told_first(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(UserError, match=r"caf\\xe9/out: a name in this path is not UTF-8"):
        files.check_output_dir(folder / "out", overwrite=False)
    folder.mkdir()
    with pytest.raises(UserError, match="not UTF-8"):
        local_model(folder)
    files.check_output_dir(tmp_path / "café", overwrite=False)
