"""The tab that protects photos. It holds none: Gradio passes on what was dropped, and shows pieces of HTML."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from apdm.app import parts, texts
from apdm.app.choices import FORMATS, MOST, OWN, Choice, methods, strengths
from apdm.app.protecting import Desk, Seen, in_words_of_the_page, protected_files
from apdm.app.sessions import Session, Sessions
from apdm.app.worker import FAULT, Job, State, Worker
from apdm.core.errors import UserError
from apdm.core.files import delete
from apdm.core.logging import get_logger
from apdm.data.photo_files import printable
from apdm.families.miniature import is_miniature
from apdm.image_layer.photos import Format

BEAT = 0.25  # seconds between two looks at the progress
ARRIVING = "Photos are still arriving. Wait until you see them, then protect all."
BUSY = "These photos are being protected. Wait for the end, or cancel."
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
logger = get_logger(__name__)
Update = dict[Any, Any]  # {part of the page: its new value}
Handler = Callable[..., AsyncIterator[Update]]


class PhotosTab:
    """The tab that protects photos.

    The parts of the page are attributes. When a user drops, chooses or clicks something, Gradio calls one of the
    methods. It yields what changes, as {part: its new value}.

    Args:
        desk: protects photos.
        worker: does one thing after the other.
        sessions: the photos of each page that is open.
    """

    def __init__(self, desk: Desk, worker: Worker, sessions: Sessions) -> None:
        self._desk, self._worker, self._sessions = desk, worker, sessions
        self._add_photos()
        self._add_options()
        self._add_results()
        self._connect()

    def _add_photos(self) -> None:
        config, faces = self._desk.config, self._desk.knows_faces
        gr.Markdown(texts.short(config.subject_kind, faces=faces) + texts.PRIVACY)
        if is_miniature(config.pretrained_model_name_or_path, config.single_file_config):
            gr.Markdown(texts.miniature(config.subject_kind, faces=faces))
        gr.Markdown(f"## 1. Photos of one {texts.SUBJECTS[config.subject_kind]}")
        self.drop = gr.File(show_label=False, file_count="multiple", height=130, elem_id="drop")
        self.seen = gr.HTML(elem_id="seen")
        with gr.Row():
            self.out = gr.Dropdown([], multiselect=True, label="Remove photos", visible=False, elem_id="out", scale=3)
            self.clear = gr.Button("Remove all", visible=False, size="sm", elem_id="clear", scale=1, min_width=120)

    def _add_options(self) -> None:
        begin, faces = self._desk.choice, self._desk.knows_faces
        gr.Markdown("## 2. How")
        self.strength = gr.Radio(strengths(faces=faces), value=begin.strength, label="Strength", elem_id="strength")
        with gr.Row(visible=begin.strength == OWN) as self.own:
            self.fine_tuning = gr.Slider(1, MOST, begin.fine_tuning, step=1, label="Steps of 255 for the method")
            self.zero_shot = gr.Slider(1, MOST, begin.zero_shot, step=1, label="Steps of 255 for faces", visible=faces)
        offered = [(text, name) for name, text in methods(self._desk.config).items()]
        self.method = gr.Dropdown(offered, value=begin.method, label="Method against training", elem_id="method")
        self.faces = gr.Checkbox(
            begin.faces, label="Change the faces too, against face recognisers", visible=faces, elem_id="faces"
        )
        kinds = [(text, name) for name, text in FORMATS.items()]
        self.kind = gr.Radio(kinds, value=begin.format, label="Saved as")
        self.meaning = gr.HTML(parts.notes("note", [begin.text()]))

    def _add_results(self) -> None:
        gr.Markdown("## 3. Protect")
        with gr.Row():
            self.go = gr.Button("Protect", variant="primary", interactive=False, elem_id="go")
            self.stop = gr.Button("Cancel", interactive=False, elem_id="stop")
        self.told = gr.HTML(elem_id="told")
        with gr.Column(visible=False) as self.made:
            self.shown = gr.Dropdown([], label="Before and after", elem_id="shown")
            self.compare = gr.HTML(elem_id="compare")
            self.files = gr.HTML(elem_id="files")

    def _connect(self) -> None:
        """Say which method is called when."""
        options: list[Any] = [self.strength, self.fine_tuning, self.zero_shot, self.method, self.faces, self.kind]
        results = [self.told, self.made, self.shown, self.compare, self.files]
        changed = [self.drop, self.seen, self.out, self.clear, self.go, self.stop, *results]

        def on(event: Any, handler: Handler, inputs: list[Any]) -> None:
            event(self._with_session(handler), inputs, changed, concurrency_limit=None, **HIDDEN)

        on(self.drop.upload, self.take, [self.drop, self.kind])
        on(self.out.input, self.take_out, [self.out])
        on(self.clear.click, self.take_all_out, [])
        on(self.go.click, self.protect, options)
        on(self.shown.input, self.show, [self.shown])
        self.stop.click(self.cancel, None, None, queue=False, **HIDDEN)
        for option in options:
            option.change(self.explain, options, [self.meaning, self.own], queue=False, **HIDDEN)

    def _with_session(self, handler: Handler) -> Handler:
        """Return a function for Gradio that gives the photos of the page to a method, and shows a fault of it."""

        async def run(request: gr.Request, *values: Any) -> AsyncIterator[Update]:
            session = self._session(request)
            try:
                async for update in handler(session, *values):
                    yield update
            except Exception as fault:  # the page says so, and goes on
                if not session.closed:
                    logger.error("%s, while a page was served", type(fault).__name__, exc_info=True)
                    yield {self.told: parts.notes("bad", [FAULT.format(type(fault).__name__)])}
            finally:
                if session.closed:
                    session.close()  # deletes what has arrived since

        return run

    def _session(self, request: gr.Request) -> Session:
        return self._sessions.of(str(request.session_hash))

    async def take(self, session: Session, files: list[str] | None, kind: Format) -> AsyncIterator[Update]:
        """Take photos that were dropped, and look for faces in them."""
        arrived = [Path(file) for file in files or []]
        if session.protecting:
            for path in arrived:
                delete(path)
            yield {self.drop: None, self.told: parts.notes("bad", [BUSY])}
            return
        version = session.version
        with _changing(session):
            yield {self.drop: None, self.go: gr.update(interactive=False)}
            for path in arrived:
                try:
                    with in_words_of_the_page(session):
                        await asyncio.to_thread(session.add, path, kind)
                except FileNotFoundError:  # another page was given the same file at the same moment
                    session.refused.append(f"{printable(path.name)} did not arrive; drop it again")
                except UserError as error:
                    session.refused.append(f"Not taken: {error}")
        if session.version != version:
            yield self._new_photos(session)
        async for update in self._look(session):
            yield update

    async def take_out(self, session: Session, names: list[str]) -> AsyncIterator[Update]:
        """Delete photos that were chosen for it."""
        if session.protecting:
            yield {self.out: gr.update(value=[]), self.told: parts.notes("bad", [BUSY])}
            return
        with _changing(session):
            await asyncio.to_thread(session.remove, names)
        yield self._new_photos(session)
        async for update in self._look(session):
            yield update

    async def take_all_out(self, session: Session) -> AsyncIterator[Update]:
        """Delete all photos."""
        async for update in self.take_out(session, session.names()):
            yield update

    async def _look(self, session: Session) -> AsyncIterator[Update]:
        """Look for faces, and show the photos, and why some were not taken."""
        if session.changing:
            return  # whoever still changes the photos looks for their faces then
        told = parts.notes("bad", session.refused)
        if not session.names():
            session.refused = []
            yield {self.seen: told, **self._buttons(session, ready=False)}
            return
        version = session.version
        job = self._worker.submit(lambda watch: self._desk.look(session))
        looks = parts.notes("note", ["Looking for faces ..." if self._desk.knows_faces else "Reading the photos ..."])
        while not job.ended.is_set():
            yield {self.seen: told + (self._progress(job) if job.state is State.WAITING else looks)}
            await asyncio.sleep(BEAT)
        if session.changing or session.version != version:
            return  # whoever brings or brought other photos looks for their faces
        seen: Seen = job.result or Seen(photos=[], notes=[], fault=job.error)
        refused, session.refused = session.refused, []
        yield {
            self.seen: parts.photos(seen, session.token, session.version, refused),
            **self._buttons(session, ready=bool(seen.photos) and not seen.fault),
        }

    async def protect(self, session: Session, *options: Any) -> AsyncIterator[Update]:
        """Protect the photos, tell how far it is, and show what was made."""
        if session.protecting:
            return
        if session.changing:
            yield {self.told: parts.notes("bad", [ARRIVING])}
            return
        choice = _choice(*options)
        session.job = job = self._worker.submit(lambda watch: self._desk.protect(session, choice, watch))
        yield {
            self.go: gr.update(interactive=False),
            self.stop: gr.update(interactive=True),
            self.made: gr.update(visible=False),
        }
        while not job.ended.is_set():
            yield {self.told: self._progress(job)}
            await asyncio.sleep(BEAT)
        if job.state is not State.DONE:
            yield {self.told: self._progress(job), **self._buttons(session, ready=True)}
            return
        names = [printable(path.name) for path in protected_files(session)]
        yield {
            self.told: parts.outcome(job.result, job.messages),
            self.made: gr.update(visible=True),
            self.shown: gr.update(choices=[(name, i) for i, name in enumerate(names)], value=0),
            self.compare: parts.compare(session.token, session.version, 0),
            self.files: parts.downloads(session.token, session.version, names),
            **self._buttons(session, ready=True),
        }

    async def show(self, session: Session, number: int) -> AsyncIterator[Update]:
        """Show another photo before and after."""
        yield {self.compare: parts.compare(session.token, session.version, int(number))}

    def cancel(self, request: gr.Request) -> None:
        """End the work on the photos of a page."""
        job = self._session(request).job
        if job is not None:
            self._worker.cancel(job)

    def explain(self, *options: Any) -> Update:
        """Say what the choice means, and show the sliders if they count."""
        choice = _choice(*options)
        return {
            self.meaning: parts.notes("note", [choice.text()]),
            self.own: gr.update(visible=choice.strength == OWN),
        }

    def _progress(self, job: Job) -> str:
        return parts.progress(job, self._worker.before(job))

    def _new_photos(self, session: Session) -> Update:
        """What changes as soon as there are other photos: what was made of the old ones is not shown any more."""
        return {self.told: "", self.made: gr.update(visible=False), **self._buttons(session, ready=False)}

    def _buttons(self, session: Session, *, ready: bool) -> Update:
        """What can be clicked while nothing is being protected. `ready` says whether the photos can be protected."""
        names = session.names() if session.photos.is_dir() else []
        return {
            self.go: gr.update(interactive=ready),
            self.stop: gr.update(interactive=False),
            self.out: gr.update(choices=[(printable(name), name) for name in names], value=[], visible=len(names) > 1),
            self.clear: gr.update(visible=bool(names)),
        }


@contextmanager
def _changing(session: Session) -> Iterator[None]:
    """Photos of a page are added or deleted meanwhile, so that nothing is protected."""
    session.changing += 1
    try:
        yield
    finally:
        session.changing -= 1


def _choice(strength: str, fine_tuning: float, zero_shot: float, method: str, faces: bool, kind: str) -> Choice:
    """The choice that the values of the options stand for. An empty slider counts as 0."""
    return Choice(
        strength=str(strength),
        fine_tuning=int(fine_tuning or 0),
        zero_shot=int(zero_shot or 0),
        method=str(method),
        faces=bool(faces),
        format=str(kind),
    )
