"""The page, made with Gradio. It holds no photos: Gradio passes on what was dropped, and shows pieces of HTML."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from apdm.app import parts, reports, texts
from apdm.app.choices import FORMATS, MOST, OWN, Choice, methods, strengths
from apdm.app.protecting import Desk, Seen, in_words_of_the_page, protected_files
from apdm.app.reports import Reports
from apdm.app.sessions import Session, Sessions
from apdm.app.worker import FAULT, Job, State, Worker
from apdm.core.errors import UserError, UserErrors
from apdm.core.files import delete
from apdm.core.logging import get_logger
from apdm.data.photo_files import printable
from apdm.families.miniature import is_miniature
from apdm.image_layer.photos import Format

BEAT = 0.25  # seconds between two looks at the progress
FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]  # of this machine
MONO = ["ui-monospace", "Consolas", "monospace"]
BUSY = "These photos are being protected. Wait for the end, or cancel."
logger = get_logger(__name__)
Update = dict[Any, Any]  # {part of the page: its new value}


def theme() -> gr.themes.Base:
    """Gradio's plain theme, with fonts that the machine has: its own ones are loaded from the network."""
    return gr.themes.Soft(primary_hue="blue", font=FONTS, font_mono=MONO)


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page does when something is dropped, chosen or clicked.

    Attributes:
        desk: protects photos.
        worker: does one thing after the other.
        sessions: the photos of each page that is open.
        reports: the pages of audits.
    """

    desk: Desk
    worker: Worker
    sessions: Sessions
    reports: Reports

    def build(self) -> gr.Blocks:
        """Return the page."""
        with gr.Blocks(title=f"apdm: {texts.TITLE}", analytics_enabled=False) as page:
            gr.Markdown(f"# {texts.TITLE}")
            with gr.Tabs():
                with gr.Tab("Photos"):
                    self._build_photos()
                with gr.Tab("Report"):
                    self._build_report()
                with gr.Tab("What it means"):
                    gr.Markdown(texts.long(self.desk.config.subject_kind, faces=self.desk.knows_faces))
            page.unload(self.leave)
        page.queue(default_concurrency_limit=None, api_open=False)
        return page

    # -- the first tab ------------------------------------------------------------------------------------------------

    def _build_photos(self) -> None:
        config, begin = self.desk.config, self.desk.choice
        faces = self.desk.knows_faces
        gr.Markdown(texts.short(config.subject_kind, faces=faces) + texts.PRIVACY)
        if is_miniature(config.pretrained_model_name_or_path, config.single_file_config):
            gr.Markdown(texts.miniature(config.subject_kind, faces=faces))
        gr.Markdown(f"## 1. Photos of one {texts.SUBJECTS[config.subject_kind]}")
        drop = gr.File(show_label=False, file_count="multiple", height=130, elem_id="drop")
        seen = gr.HTML(elem_id="seen")
        with gr.Row():
            out = gr.Dropdown([], multiselect=True, label="Remove photos", visible=False, elem_id="out", scale=3)
            clear = gr.Button("Remove all", visible=False, size="sm", elem_id="clear", scale=1, min_width=120)
        gr.Markdown("## 2. How")
        strength = gr.Radio(strengths(faces=faces), value=begin.strength, label="Strength", elem_id="strength")
        with gr.Row(visible=begin.strength == OWN) as own:
            first = gr.Slider(1, MOST, step=1, value=begin.fine_tuning, label="Steps of 255 for the method")
            second = gr.Slider(1, MOST, step=1, value=begin.zero_shot, label="Steps of 255 for faces", visible=faces)
        offered = [(text, name) for name, text in methods(config).items()]
        method = gr.Dropdown(offered, value=begin.method, label="Method against training", elem_id="method")
        too = gr.Checkbox(
            begin.faces,
            label="Change the faces too, against face recognisers",
            visible=faces,
            elem_id="faces",
        )
        kind = gr.Radio([(text, name) for name, text in FORMATS.items()], value=begin.format, label="Saved as")
        chosen: list[Any] = [strength, first, second, method, too, kind]
        meaning = gr.HTML(parts.notes("note", [begin.text()]))
        gr.Markdown("## 3. Protect")
        with gr.Row():
            go = gr.Button("Protect", variant="primary", interactive=False, elem_id="go")
            stop = gr.Button("Cancel", interactive=False, elem_id="stop")
        told = gr.HTML(elem_id="told")
        with gr.Column(visible=False) as made:
            shown = gr.Dropdown([], label="Before and after", elem_id="shown")
            before_after = gr.HTML(elem_id="compare")
            files = gr.HTML(elem_id="files")

        names = {"seen": seen, "out": out, "clear": clear, "go": go, "stop": stop, "told": told, "made": made}
        named = names | {"drop": drop, "shown": shown, "compare": before_after, "files": files}
        outputs = list(named.values())

        def on(trigger: Any, function: Any, inputs: list[Any]) -> None:
            async def run(request: gr.Request, *values: Any) -> AsyncIterator[Update]:
                session = self.sessions.of(str(request.session_hash))
                try:
                    async for update in function(session, *values):
                        yield {named[name]: value for name, value in update.items()}
                except Exception as fault:  # the page says so, and goes on
                    logger.error("%s, while a page was served", type(fault).__name__, exc_info=True)
                    yield {told: parts.notes("bad", [FAULT.format(type(fault).__name__)])}

            trigger(run, inputs, outputs, show_progress="hidden", api_visibility="private", concurrency_limit=None)

        on(drop.upload, self.take, [drop, kind])
        on(out.input, self.take_out, [out])
        on(clear.click, self.take_all_out, [])
        on(go.click, self.protect, chosen)
        on(shown.input, self.show, [shown])
        stop.click(self.cancel, None, None, queue=False, show_progress="hidden", api_visibility="private")
        for part in chosen:
            part.change(
                self.explain, chosen, [meaning, own], queue=False, show_progress="hidden", api_visibility="private"
            )

    async def take(self, session: Session, files: list[str] | None, kind: Format) -> AsyncIterator[Update]:
        """Take photos that were dropped, and look for faces in them."""
        arrived = [Path(file) for file in files or []]
        if session.protecting:
            for path in arrived:
                delete(path)
            yield {"drop": None, "told": parts.notes("bad", [BUSY])}
            return
        faults = []
        for path in arrived:
            try:
                with in_words_of_the_page(session):
                    await asyncio.to_thread(session.add, path, kind)
            except FileNotFoundError:  # another page was given the same file at the same moment
                faults.append(f"{printable(path.name)} did not arrive; drop it again")
            except UserError as error:
                faults.append(f"Not taken: {error}")
        yield {"drop": None, "told": "", "made": gr.update(visible=False), **self._buttons(session, False)}
        async for update in self._look(session, faults):
            yield update

    async def take_out(self, session: Session, names: list[str]) -> AsyncIterator[Update]:
        """Delete photos that were chosen for it."""
        if session.protecting:
            yield {"out": gr.update(value=[]), "told": parts.notes("bad", [BUSY])}
            return
        await asyncio.to_thread(session.remove, names)
        yield {"told": "", "made": gr.update(visible=False), **self._buttons(session, False)}
        async for update in self._look(session, []):
            yield update

    async def take_all_out(self, session: Session) -> AsyncIterator[Update]:
        """Delete all photos."""
        async for update in self.take_out(session, session.names()):
            yield update

    async def _look(self, session: Session, faults: list[str]) -> AsyncIterator[Update]:
        """Look for faces, and show the photos."""
        if not session.names():
            yield {"seen": parts.notes("bad", faults), **self._buttons(session, False)}
            return
        told = parts.notes("bad", faults)
        version = session.version
        job = self.worker.submit(lambda watch: self.desk.look(session))
        while not job.ended.is_set():
            looks = "Looking for faces ..." if self.desk.knows_faces else "Reading the photos ..."
            waits = looks if job.state is not State.WAITING else ""
            yield {"seen": told + (parts.notes("note", [waits]) if waits else self._progress(job))}
            await asyncio.sleep(BEAT)
        if session.version != version:
            return  # there are other photos by now, and whoever brought them looks for their faces
        seen: Seen = job.result or Seen(photos=[], notes=[], fault=job.error)
        yield {
            "seen": parts.photos(seen, session.token, session.version, faults),
            **self._buttons(session, bool(seen.photos) and not seen.fault),
        }

    async def protect(self, session: Session, *values: Any) -> AsyncIterator[Update]:
        """Protect the photos, tell how far it is, and show what was made."""
        if session.protecting:
            return
        choice = _choice(values)
        session.protecting = True
        try:
            session.job = job = self.worker.submit(lambda watch: self.desk.protect(session, choice, watch))
            yield {
                "go": gr.update(interactive=False),
                "stop": gr.update(interactive=True),
                "made": gr.update(visible=False),
                "told": self._progress(job),
            }
            while not job.ended.is_set():
                yield {"told": self._progress(job)}
                await asyncio.sleep(BEAT)
        finally:
            session.protecting = False
        if job.state is not State.DONE:
            yield {"told": self._progress(job), **self._buttons(session, True)}
            return
        names = [printable(path.name) for path in protected_files(session)]
        yield {
            "told": parts.outcome(job.result, job.messages),
            "made": gr.update(visible=True),
            "shown": gr.update(choices=[(name, i) for i, name in enumerate(names)], value=0),
            "compare": parts.compare(session.token, session.version, 0),
            "files": parts.downloads(session.token, session.version, names),
            **self._buttons(session, True),
        }

    async def show(self, session: Session, number: int) -> AsyncIterator[Update]:
        """Show another photo before and after."""
        yield {"compare": parts.compare(session.token, session.version, int(number))}

    def cancel(self, request: gr.Request) -> None:
        """End the work on the photos of a page."""
        job = self.sessions.of(str(request.session_hash)).job
        if job is not None:
            self.worker.cancel(job)

    def leave(self, request: gr.Request) -> None:
        """Delete the photos of a page that was closed."""
        self.sessions.close(str(request.session_hash))

    def explain(self, *values: Any) -> tuple[str, Any]:
        """Say what the choice means, and show the sliders if they count."""
        choice = _choice(values)
        return parts.notes("note", [choice.text()]), gr.update(visible=choice.strength == OWN)

    def _progress(self, job: Job) -> str:
        return parts.progress(job, self.worker.before(job))

    def _buttons(self, session: Session, ready: bool) -> Update:
        names = session.names() if session.photos.is_dir() else []
        return {
            "go": gr.update(interactive=ready),
            "stop": gr.update(interactive=False),
            "out": gr.update(choices=[(printable(name), name) for name in names], value=[], visible=len(names) > 1),
            "clear": gr.update(visible=bool(names)),
        }

    # -- the second tab -----------------------------------------------------------------------------------------------

    def _build_report(self) -> None:
        gr.Markdown(texts.REPORT)
        named = list(self.reports.named)
        shown = gr.HTML(self._frame(self.reports.named[named[0]]) if named else "", elem_id="report")
        if len(named) > 1:
            choice = gr.Dropdown(named, value=named[0], label="Audit")
            choice.input(lambda name: self._frame(self.reports.named[name]), choice, shown, api_visibility="private")
        gr.Markdown("Another one, a report.html or a results.json:")
        brought = gr.File(show_label=False, file_count="single", height=130)
        brought.upload(self.bring, brought, [brought, shown], show_progress="hidden", api_visibility="private")

    def bring(self, file: str, request: gr.Request) -> tuple[None, str]:
        """Show a report that a user brings."""
        session = self.sessions.of(str(request.session_hash))
        try:
            page = reports.uploaded(Path(file), session.folder)
        except UserError as error:
            found = error.errors if isinstance(error, UserErrors) else [error]
            return None, parts.notes("bad", [str(one) for one in found])
        return None, self._frame(page)

    def _frame(self, page: Path) -> str:
        return parts.frame(f"/r/{self.reports.show(page)}")


def _choice(values: tuple[Any, ...]) -> Choice:
    strength, first, second, method, faces, kind = values
    return Choice(
        strength=str(strength),
        fine_tuning=int(first or 0),
        zero_shot=int(second or 0),
        method=str(method),
        faces=bool(faces),
        format=str(kind),
    )
