"""Which requests the page answers."""

from __future__ import annotations

import pytest

from apdm.app.guard import refused

HERE = {"host": "127.0.0.1:7860"}


@pytest.mark.parametrize(
    "headers",
    [
        HERE,
        {"host": "localhost:7860"},
        {"host": "[::1]:7860"},
        HERE | {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"},
        HERE | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},  # a link
    ],
)
def test_the_page_itself_is_answered(headers):
    assert refused(headers, "/", "127.0.0.1") is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": ""},
        {"host": "evil.example:7860"},  # DNS rebinding: a name of somebody else's for this machine
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example"},
        {"host": "[127.0.0.1"},
        HERE | {"origin": "https://evil.example"},
        HERE | {"origin": "null"},
        HERE | {"origin": "http://127.0.0.1:8000"},  # another program of this machine
        HERE | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        HERE | {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    ],
)
def test_other_pages_are_not_answered(headers):
    assert refused(headers, "/", "127.0.0.1")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=https://evil.example/x.png",
        "/gradio_api/file/tmp/x",
        "/gradio_api/proxy=https://evil.example",
        "/file=/etc/passwd",
        "/gradio_api/%66ile=/etc/passwd",
        "//gradio_api/file=/etc/passwd",
    ],
)
def test_gradios_own_ways_to_files_and_to_other_sites_are_closed(path):
    assert refused(HERE, path, "127.0.0.1")


def test_a_name_counts_only_if_the_command_gave_it():
    assert refused({"host": "studio.example:7860"}, "/", "studio.example") is None
    assert refused({"host": "studio.example:7860"}, "/", "0.0.0.0")
