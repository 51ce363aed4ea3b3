"""The server of the page, from its start to its end."""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apdm.config import AppConfig
from apdm.config.commands.app import LOCAL
from apdm.core.errors import Interrupted, UserError
from apdm.core.logging import get_logger
from apdm.core.signals import stop_on_signals
from apdm.core.terminal import say
from apdm.core.variables import environment
from apdm.jobs.common.first_checks import check_first

if TYPE_CHECKING:
    from apdm.app.page import Page

EXTRA = 'apdm app needs the package gradio; install it with pip install "apdm[app]"'
# Gradio's own settings. It reads them when it is imported, and later.
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SSR_MODE": "False", "GRADIO_MCP_SERVER": "False"}
PATIENCE = 20.0  # seconds that the work has to end in, when the server ends
LARGEST = "600mb"  # of a file that is uploaded; the largest photo that is read has 89 million pixels

logger = get_logger(__name__)


def require_gradio() -> None:
    """Raise UserError if Gradio is not installed."""
    if find_spec("gradio") is None:
        raise UserError(EXTRA)


def serve(config: AppConfig) -> None:
    """Show the page until the process is asked to stop. All photos are deleted then.

    Raises:
        UserError: the input cannot be used. This is found before the server answers.
    """
    require_gradio()
    with _private_files() as root, _bound(config.host, config.port) as listener:
        page = _prepare(config, root)
        if config.dry_run:
            return
        address = _address(config.host, listener)
        with suppress(Interrupted), stop_on_signals():
            try:
                with _running(_application(page, config.host), listener):
                    if config.host != LOCAL:
                        logger.warning(
                            "--host %s: everybody who reaches this machine there can use the page; there is no "
                            "password, and nothing is encrypted",
                            config.host,
                        )
                    say(f"open {address} in a browser on this machine; Ctrl-C ends the page and deletes its photos")
                    threading.Event().wait()
            finally:
                page.worker.close(PATIENCE)
    logger.info("the page is closed, and all photos in it are deleted")


@contextmanager
def _private_files() -> Iterator[Path]:
    """Make the private folder, and let Gradio put there what arrives. The settings of the process are restored."""
    from apdm.app.sessions import private_folder

    with private_folder() as root:
        settings = {**SETTINGS, "GRADIO_TEMP_DIR": str(root / "uploads")}
        with environment(settings):
            yield root


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port before anything is loaded. Nobody is answered yet."""
    try:
        family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
    except OSError as error:
        raise UserError(f"host {host} is no address of this machine ({error.strerror}); leave it out") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
        except PermissionError:
            raise UserError(f"port {port} is kept for the system; give one above 1023 with --port") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(f"host {host} is no address of this machine; leave it out") from None
            mend = "give another with --port, or --port 0 for a free one"
            raise UserError(f"port {port} of {host} cannot be used ({error.strerror}); {mend}") from None
        yield listener


def _prepare(config: AppConfig, root: Path) -> Page:
    """Load and check everything that the command names."""
    check_first(config.for_photos(root, root / "protected", root / "class"))
    from apdm.app.protecting import Desk
    from apdm.app.reports import Reports
    from apdm.app.sessions import Sessions
    from apdm.app.worker import Worker
    from apdm.core.errors import Faults
    from apdm.image_layer.protections import make_protection
    from apdm.jobs.perturb import PhotoModels

    with Faults() as faults:
        reports = faults.of(lambda: Reports.read(config.report, root / "reports"))
        if config.image_layer.method != "none":
            faults.of(lambda: make_protection(config.image_layer))
        models = faults.of(lambda: PhotoModels.load(config))
    from apdm.app.page import Page  # imports Gradio

    desk = Desk(config=config, models=models, class_pictures=root / "class")
    worker = Worker()
    return Page(desk=desk, worker=worker, sessions=Sessions(root, worker), reports=reports)


def _address(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def _application(page: Page, host: str) -> Any:
    """Return the application: the pictures of the pages, then the page itself, behind the guard."""
    import gradio as gr
    from fastapi import FastAPI

    from apdm.app.guard import Guard
    from apdm.app.page import theme
    from apdm.app.parts import CSS
    from apdm.app.pictures import Pictures

    own = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    Pictures(page.sessions, page.reports).add_to(own)
    closed = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    gr.mount_gradio_app(
        own,
        page.build(),
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        app_kwargs=closed,
        allowed_paths=[],
        show_error=False,
        max_file_size=LARGEST,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css=CSS,
    )
    return Guard(own, host)


@contextmanager
def _running(application: Any, listener: socket.socket) -> Iterator[None]:
    """Answer requests in another thread while the block runs. Signals stay with this thread."""
    import uvicorn

    options = uvicorn.Config(
        application, log_level="error", access_log=False, timeout_graceful_shutdown=1, ws="none", server_header=False
    )
    server = uvicorn.Server(options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="apdm-app-server", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server has ended before it had started")
        thread.join(0.05)
    try:
        yield
    finally:
        # Pages that are still open hold on to their requests. That these are cut off is no fault to tell of.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join(10)
        sys.stderr.flush()
