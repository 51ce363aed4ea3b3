"""The page, made with Gradio: a tab for photos, a tab for reports, and a text."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from apdm.app import texts
from apdm.app.photos_tab import PhotosTab
from apdm.app.protecting import Desk
from apdm.app.report_tab import ReportTab
from apdm.app.reports import Reports
from apdm.app.sessions import Sessions
from apdm.app.worker import Worker

FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]  # of this machine
MONO = ["ui-monospace", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Gradio's plain theme, with fonts that the machine has: its own ones are loaded from the network."""
    return gr.themes.Soft(primary_hue="blue", font=FONTS, font_mono=MONO)


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
