"""The page, made with Gradio: a tab for photos, a tab for reports, and a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from apdm.app import parts, texts
from apdm.app.photos_tab import PhotosTab
from apdm.app.protecting import Desk
from apdm.app.reports import Reports, uploaded
from apdm.app.sessions import Sessions
from apdm.app.worker import Worker
from apdm.core.errors import UserError

FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]  # of this machine
MONO = ["ui-monospace", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Gradio's plain theme, with fonts that the machine has: its own ones are loaded from the network."""
    return gr.themes.Soft(primary_hue="blue", font=FONTS, font_mono=MONO)


class ReportTab:
    """The tab that shows the pages of audits: those that the command named, and one that a user brings.

    Args:
        reports: the pages of audits.
        sessions: the private folders of the pages that are open.
    """

    def __init__(self, reports: Reports, sessions: Sessions) -> None:
        self._reports, self._sessions = reports, sessions
        named = reports.named
        gr.Markdown(texts.REPORT)
        shown = gr.HTML(self._frame(next(iter(named.values()))) if named else "", elem_id="report")
        if len(named) > 1:
            choice = gr.Dropdown(list(named), value=next(iter(named)), label="Audit")
            choice.input(lambda name: self._frame(named[name]), choice, shown, api_visibility="private")
        gr.Markdown("Another one, a report.html or a results.json:")
        brought = gr.File(show_label=False, file_count="single", height=130)
        brought.upload(self.bring, brought, [brought, shown], show_progress="hidden", api_visibility="private")

    def bring(self, file: str, request: gr.Request) -> tuple[None, str]:
        """Show a report that a user brings, and empty the field that it was dropped on."""
        session = self._sessions.of(str(request.session_hash))
        try:
            return None, self._frame(uploaded(Path(file), session.folder))
        except UserError as error:
            return None, parts.notes("bad", [str(error)])

    def _frame(self, page: Path) -> str:
        return parts.frame(f"/r/{self._reports.show(page)}")


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page needs. Every browser that opens the page shares it.

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
                    PhotosTab(self.desk, self.worker, self.sessions)
                with gr.Tab("Report"):
                    ReportTab(self.reports, self.sessions)
                with gr.Tab("What it means"):
                    gr.Markdown(texts.long(self.desk.config.subject_kind, faces=self.desk.knows_faces))
            page.unload(self.leave)
        page.queue(default_concurrency_limit=None, api_open=False)
        return page

    def leave(self, request: gr.Request) -> None:
        """Delete the photos of a page that was closed."""
        self.sessions.close(str(request.session_hash))
