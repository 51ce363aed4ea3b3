"""The tab that shows the pages of audits."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from apdm.app import parts, texts
from apdm.app.reports import Reports, uploaded
from apdm.app.sessions import Sessions
from apdm.core.errors import UserError


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
