"""The tab that protects photos: what its methods do if a user is quick. Gradio would call them; here the tests do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apdm.app import protecting
from apdm.app.sessions import Session, Sessions
from apdm.app.worker import Worker
from apdm.config import AppConfig, load_config
from apdm.jobs.perturb import PhotoModels

gr = pytest.importorskip("gradio", reason="the page is made with gradio")
OPTIONS = ["--image_layer.method", "noise", "--image_layer.zero_shot.enabled", "false", "--num_threads", "1"]
CHOICE = ("default", 7, 11, "noise", False, "png")


@pytest.fixture(scope="module")
def models() -> PhotoModels:
    return PhotoModels.load(load_config(AppConfig, OPTIONS))


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    worker = Worker()
    yield Sessions(tmp_path, worker)
    worker.close(5)


@pytest.fixture
def tab(sessions: Sessions, models: PhotoModels, tmp_path: Path) -> Any:
    from apdm.app.photos_tab import PhotosTab

    desk = protecting.Desk(config=load_config(AppConfig, OPTIONS), models=models, class_pictures=tmp_path / "class")
    with gr.Blocks(analytics_enabled=False):
        return PhotosTab(desk, sessions._worker, sessions)


def photos(folder: Path, *names: str) -> list[str]:
    """Photos that take a moment to read, as uploaded files."""
    folder.mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (1000, 1000), (number, 0, 0)).save(folder / name)
    return [str(folder / name) for name in names]


async def last(tab: Any, updates: AsyncIterator[dict[Any, Any]]) -> dict[str, Any]:
    """What the page shows in the end, {name of a part: value}."""
    names = {id(part): name for name, part in vars(tab).items()}
    return {names[id(part)]: value async for update in updates for part, value in update.items()}


def test_photos_of_two_drops_at_the_same_time_are_all_taken_and_what_was_refused_is_said(tab, sessions, tmp_path):
    session = sessions.of("a")
    first = photos(tmp_path / "one", *(f"{i}.png" for i in range(4)))
    second = photos(tmp_path / "two", *(f"{i}.png" for i in range(4, 8)))
    (tmp_path / "one/notes.txt").write_text("hello")

    async def both() -> tuple[dict[str, Any], ...]:
        drops = [tab.take(session, [str(tmp_path / "one/notes.txt"), *first], "png"), tab.take(session, second, "png")]
        return tuple(await asyncio.gather(*(last(tab, drop) for drop in drops)))

    seen = [shown["seen"] for shown in asyncio.run(both()) if "<figure>" in shown.get("seen", "")]
    assert session.names() == [f"{i}.png" for i in range(8)]
    assert seen and seen[-1].count("<figure>") == 8 and "did not arrive" not in seen[-1]
    assert "notes.txt is not a picture" in "".join(seen)


def test_nothing_is_protected_while_photos_arrive(tab, sessions, tmp_path):
    session, files = sessions.of("a"), photos(tmp_path / "in", *(f"{i}.png" for i in range(4)))

    async def too_early() -> tuple[dict[str, Any], dict[str, Any]]:
        taking = asyncio.create_task(last(tab, tab.take(session, files, "png")))
        while not session.names():
            await asyncio.sleep(0)
        return await last(tab, tab.protect(session, *CHOICE)), await taking

    told, taken = asyncio.run(too_early())
    assert "still arriving" in told["told"] and session.job is None
    assert taken["go"]["interactive"] and taken["seen"].count("<figure>") == 4
    made = asyncio.run(last(tab, tab.protect(session, *CHOICE)))
    assert "4 photos protected" in made["told"]


def test_photos_stay_as_they_are_while_they_are_protected(tab, sessions, tmp_path, monkeypatch):
    session, go_on = sessions.of("a"), False

    async def story() -> dict[str, Any]:
        nonlocal go_on
        await last(tab, tab.take(session, photos(tmp_path / "in", "0.png"), "png"))
        going = asyncio.create_task(last(tab, tab.protect(session, *CHOICE)))
        while not session.protecting:
            await asyncio.sleep(0)
        late = photos(tmp_path / "late", "1.png")
        for refused in (tab.take(session, late, "png"), tab.take_out(session, ["0.png"]), tab.take_all_out(session)):
            assert "being protected" in (await last(tab, refused))["told"]
        assert not Path(late[0]).exists()
        go_on = True
        return await going

    def slowly(self: Any, session: Session, choice: Any, watch: Any) -> Any:
        while not go_on:
            time.sleep(0.01)
        return protect(self, session, choice, watch)

    protect = protecting.Desk.protect
    monkeypatch.setattr(protecting.Desk, "protect", slowly)
    assert "1 photo protected" in asyncio.run(story())["told"] and session.names() == ["0.png"]


def test_a_file_that_is_refused_leaves_what_was_made_on_the_page(tab, sessions, tmp_path):
    session = sessions.of("a")
    (tmp_path / "notes.txt").write_text("hello")
    asyncio.run(last(tab, tab.take(session, photos(tmp_path / "in", "0.png"), "png")))
    asyncio.run(last(tab, tab.protect(session, *CHOICE)))
    shown = asyncio.run(last(tab, tab.take(session, [str(tmp_path / "notes.txt")], "png")))
    assert "notes.txt is not a picture" in shown["seen"] and "<figure>" in shown["seen"]
    assert session.figures is not None and not {"made", "told"} & shown.keys()


def test_a_page_that_is_closed_while_photos_arrive_leaves_nothing(tab, sessions, tmp_path, caplog):
    session, files = sessions.of("a"), photos(tmp_path / "in", *(f"{i}.png" for i in range(4)))

    class Request:
        session_hash = "a"

    async def story() -> None:
        taking = asyncio.create_task(last(tab, tab._with_session(tab.take)(Request, files, "png")))
        while not session.names():
            await asyncio.sleep(0)
        sessions.close("a")
        await taking

    asyncio.run(story())
    assert not session.folder.exists() and not any(map(Path.exists, map(Path, files))) and not caplog.records


def test_a_copy_for_the_browser_is_never_of_a_photo_that_was_removed(tab, sessions, tmp_path, monkeypatch):
    session, read = sessions.of("a"), protecting.read_image

    def meanwhile(change: Any) -> Any:
        def read_and_change(path: Path) -> Image.Image:
            found = read(path)
            change()
            return found

        return read_and_change

    for change in (lambda: session.remove(["0.png"]), lambda: sessions.close("a")):
        session.add(Path(photos(tmp_path / "in", "0.png")[0]), "png")
        (tmp_path / "in").rmdir()
        monkeypatch.setattr(protecting, "read_image", meanwhile(change))
        with pytest.raises(protecting.UserError, match="changed meanwhile"):
            protecting.thumbnail(session, session.photos / "0.png")
        assert not (session.shown / "0.png.jpg").exists()
    assert not session.folder.exists()
