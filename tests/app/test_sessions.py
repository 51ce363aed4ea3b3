"""The private folders of pages, and the queue of their work."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apdm.app import sessions as module
from apdm.app.sessions import PREFIX, Sessions, private_folder
from apdm.app.worker import State, Worker
from apdm.core.errors import UserError
from apdm.core.files import MARKER


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close(5)


@pytest.fixture
def pages(tmp_path, worker):
    return Sessions(tmp_path, worker)


def picture(path: Path, size: tuple[int, int] = (20, 24), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert("RGB").save(path, **options)
    return path


def test_the_folder_is_private_and_is_deleted(monkeypatch, tmp_path):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    with private_folder() as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        (root / "sessions").mkdir()
        (root / "sessions" / "photo.png").write_bytes(b"x")
    assert not root.exists()


def test_what_a_killed_server_left_behind_is_deleted_and_a_running_one_keeps_its_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    left, other = tmp_path / f"{PREFIX}left", tmp_path / f"{PREFIX}other"
    for folder in (left, other):
        folder.mkdir()
    (left / MARKER).write_text("")
    with private_folder() as running, private_folder():
        assert running.exists() and not left.exists()
        assert other.exists()  # not marked, so not ours


def test_two_pages_do_not_mix_their_photos(pages, tmp_path):
    one, other = pages.of("a"), pages.of("b")
    one.add(picture(tmp_path / "in" / "me.png"), "png")
    other.add(picture(tmp_path / "in" / "me.png", (30, 30)), "png")
    other.add(picture(tmp_path / "in" / "too.png"), "png")
    assert (one.names(), other.names()) == (["me.png"], ["me.png", "too.png"])
    assert one.token != other.token and pages.by_token(one.token) is one and pages.by_token("x") is None
    pages.close("a")
    assert not one.folder.exists() and other.names() == ["me.png", "too.png"] and pages.by_token(one.token) is None


def test_photos_that_perturb_refuses_are_refused_with_its_message_and_deleted(pages, tmp_path):
    session = pages.of("a")
    text = tmp_path / "in" / "notes.txt"
    text.parent.mkdir()
    text.write_text("hello")
    (tmp_path / "in" / "torn.jpg").write_bytes(picture(tmp_path / "in" / "good.jpg").read_bytes()[:300])
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    for name, said in {
        "notes.txt": "photos/notes.txt is not a picture that can be read; replace or remove it",
        "torn.jpg": "photos/torn.jpg is damaged",
        "empty.png": "photos/empty.png is empty",
    }.items():
        with pytest.raises(UserError, match=said):
            session.add(tmp_path / "in" / name, "png")
    with pytest.raises(UserError, match="8x30; a photo needs 16 pixels"):
        session.add(picture(tmp_path / "in" / "small.png", (8, 30)), "png")
    assert session.names() == [] and not list(session.folder.rglob("*.*"))


def test_odd_photos_are_taken_as_perturb_takes_them(pages, tmp_path):
    session, folder = pages.of("a"), tmp_path / "in"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert session.add(picture(folder / "turned.jpg", (40, 20), exif=exif), "png").height == 40
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(folder / "clear.png")
    frames = [Image.new("P", (20, 20), i) for i in range(2)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    for name in ("deep.png", "clear.png", "moving.gif"):
        session.add(folder / name, "png")
    assert session.names() == ["clear.png", "deep.png", "moving.gif", "turned.jpg"]


def test_two_photos_of_one_name_are_told_apart(pages, tmp_path):
    session = pages.of("a")
    session.add(picture(tmp_path / "in" / "me.png"), "png")
    with pytest.raises(UserError, match=r"me.png and Me.jpg would both be saved under one name"):
        session.add(picture(tmp_path / "in" / "Me.jpg"), "png")
    session.remove(["me.png", "../../secret"])
    assert session.names() == []
    session.add(picture(tmp_path / "in" / "Me.jpg"), "png")


def test_a_change_of_the_photos_forgets_what_was_made_of_them(pages, tmp_path):
    session = pages.of("a")
    session.add(picture(tmp_path / "in" / "me.png"), "png")
    picture(session.output / "images" / "s01" / "me.png")
    version = session.version
    session.add(picture(tmp_path / "in" / "too.png"), "png")
    assert not session.output.exists() and session.version != version


def test_one_job_at_a_time_and_the_others_know_their_place(worker):
    going, go_on, seen = threading.Event(), threading.Event(), []

    def first(watch):
        going.set()
        go_on.wait(10)
        return "made"

    jobs = [worker.submit(first), *(worker.submit(lambda watch, i=i: seen.append(i)) for i in (1, 2, 3))]
    going.wait(10)
    assert [worker.before(job) for job in jobs] == [0, 1, 2, 3]
    worker.cancel(jobs[1])
    assert jobs[1].state is State.CANCELLED and worker.before(jobs[3]) == 2
    go_on.set()
    for job in jobs:
        assert job.ended.wait(10)
    assert seen == [2, 3] and jobs[0].result == "made"


def test_a_job_that_runs_ends_after_its_present_step(worker):
    def work(watch):
        for step in range(10000):
            watch(step, 10000)
            time.sleep(0.01)

    job = worker.submit(work)
    while not job.done:
        time.sleep(0.01)
    assert job.seconds_left is not None and job.seconds_left > 0
    worker.cancel(job)
    assert job.ended.wait(5) and job.state is State.CANCELLED


def test_a_fault_ends_the_job_and_not_the_worker(worker, caplog):
    def broken(watch):
        raise KeyError("x")

    def refused(watch):
        raise UserError("replace it")

    jobs = [worker.submit(broken), worker.submit(refused), worker.submit(lambda watch: 3)]
    for job in jobs:
        job.ended.wait(5)
    assert [job.state for job in jobs] == [State.FAILED, State.FAILED, State.DONE]
    assert "fault of the program" in jobs[0].error and jobs[1].error == "replace it" and jobs[2].result == 3


def test_the_warnings_of_a_job_are_kept_for_its_page(worker):
    from apdm.core.logging import get_logger

    job = worker.submit(lambda watch: get_logger("apdm.jobs.x").warning("%s still recognises", "a"))
    assert job.ended.wait(5) and job.messages == ["a still recognises"]


def test_a_page_that_is_closed_while_its_photos_are_protected_leaves_nothing(pages, worker, tmp_path):
    session, going = pages.of("a"), threading.Event()

    def work(watch):
        for step in range(10000):
            going.set()
            time.sleep(0.01)
            (session.folder / "late").mkdir(parents=True, exist_ok=True)
            watch(step, 10000)

    session.job = worker.submit(work)
    going.wait(5)
    pages.close("a")
    assert session.job.ended.wait(5)
    for _ in range(100):
        if not session.folder.exists():
            break
        time.sleep(0.02)
    assert not session.folder.exists() and os.listdir(tmp_path / "sessions") == []
