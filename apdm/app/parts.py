"""Pieces of HTML. Names of files are escaped. All addresses lie on this server, and have the page's secret in them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil

from apdm.app.protecting import Seen, SeenPhoto
from apdm.app.worker import Job, State
from apdm.core.terminal import count
from apdm.image_layer.results import Perturbation

CSS = """
.gradio-container { width: 100%; max-width: 1080px !important; margin: 0 auto !important; }
.apdm-photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 14px; }
.apdm-photos figure, .apdm-compare figure { margin: 0; }
.apdm-frame { position: relative; display: block; line-height: 0; background: #fff; border-radius: 6px;
  overflow: hidden; }
.apdm-frame img { width: 100%; height: auto; display: block; }
.apdm-box { position: absolute; box-sizing: border-box; border: 3px solid #9ca3af; border-radius: 4px;
  box-shadow: 0 0 0 1px rgba(0, 0, 0, .55); }
.apdm-box.chosen { border-color: #16a34a; }
.apdm-photos figcaption { font-size: .85rem; line-height: 1.35; margin-top: 5px; overflow-wrap: anywhere; }
.apdm-photos figcaption b { display: block; font-weight: 600; }
.apdm-note, .apdm-bad, .apdm-good { padding: 8px 12px; border-radius: 6px; margin: 6px 0; line-height: 1.45;
  border-left: 4px solid #9ca3af; background: color-mix(in srgb, #9ca3af 14%, transparent); overflow-wrap: anywhere; }
.apdm-bad { border-color: #dc2626; background: color-mix(in srgb, #dc2626 12%, transparent); }
.apdm-good { border-color: #16a34a; background: color-mix(in srgb, #16a34a 12%, transparent); }
.apdm-bar { height: 12px; border-radius: 6px; overflow: hidden; margin: 6px 0;
  background: color-mix(in srgb, currentColor 18%, transparent); }
.apdm-bar div { height: 100%; background: #2563eb; transition: width .3s; }
.apdm-compare { --at: 50%; --zoom: 1; }
.apdm-window { overflow: auto; max-height: 70vh; border-radius: 6px; background: #fff; max-width: 640px; }
.apdm-both { position: relative; width: calc(100% * var(--zoom)); line-height: 0; }
.apdm-both img { width: 100%; height: auto; display: block; image-rendering: pixelated; }
.apdm-both .after { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)); }
.apdm-both .line { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px;
  background: #2563eb; }
.apdm-compare label { display: grid; grid-template-columns: 4.5em 1fr 4.5em; align-items: center; gap: 10px;
  max-width: 640px; margin: 10px 0; font-size: .9rem; }
.apdm-compare input[type=range] { width: 100%; accent-color: #2563eb; }
.apdm-compare label span:last-child { text-align: right; }
.apdm-files { list-style: none; padding: 0; margin: 8px 0; display: grid; gap: 6px; }
.apdm-files a, .apdm-zip { text-decoration: underline; overflow-wrap: anywhere; }
.dark .apdm-files a, .dark a.apdm-files { color: #93c5fd; }
.apdm-zip { display: inline-block; padding: 9px 16px; border-radius: 6px; background: #1d4ed8; color: #fff !important;
  text-decoration: none; font-weight: 600; }
#clear { align-self: end; }
.apdm-report { width: 100%; height: 80vh; border: 1px solid #9ca3af; border-radius: 6px; }
"""


def notes(kind: str, texts: Sequence[str]) -> str:
    """Return texts in boxes. `kind` is "note", "bad" or "good"."""
    lines = [line for text in texts for line in text.splitlines()]
    role = ' role="alert"' if kind == "bad" else ""
    return "".join(f'<div class="apdm-{kind}"{role}>{escape(line)}</div>' for line in lines)


def photos(seen: Seen, token: str, version: int, refused: Sequence[str] = ()) -> str:
    """Return the photos with the faces that were found in them, and what is said about them."""
    cards = "".join(_card(photo, f"/p/{token}/seen/{i}?v={version}") for i, photo in enumerate(seen.photos))
    told = notes("bad", [*refused, *([seen.fault] if seen.fault else [])]) + notes("note", seen.notes)
    return f'{told}<div class="apdm-photos">{cards}</div>' if cards else told


def _card(photo: SeenPhoto, address: str) -> str:
    boxes = "".join(
        f'<span class="apdm-box{" chosen" if chosen else ""}" style="left:{left:.2%};top:{top:.2%};'
        f'width:{width:.2%};height:{height:.2%}"></span>'
        for left, top, width, height, chosen in photo.boxes
    )
    said = f"{photo.width} x {photo.height}" + (f"; {photo.text}" if photo.text else "")
    return (
        f'<figure><span class="apdm-frame"><img src="{address}" alt="{escape(photo.name)}">{boxes}</span>'
        f"<figcaption><b>{escape(photo.name)}</b>{escape(said)}</figcaption></figure>"
    )


def progress(job: Job, before: int) -> str:
    """Return how far a job is, or how many others come first."""
    if job.state is State.WAITING:
        return notes("note", [f"Waiting: {count(before, 'other job')} from this or another page first."])
    if job.state is State.CANCELLED:
        return notes("note", ["Cancelled. Nothing was saved."])
    if job.state is State.FAILED:
        return notes("bad", [job.error])
    if job.state is State.DONE:
        return ""
    if not job.steps:
        return notes("note", ["Reading the photos ..."])
    if job.done >= job.steps:
        return _bar(1.0, "Saving and measuring ...")
    left = job.seconds_left
    return _bar(
        job.done / job.steps,
        f"Step {job.done} of {job.steps}" + ("" if left is None else f", about {time_text(left)} left"),
    )


def _bar(share: float, text: str) -> str:
    return (
        f'<div role="status">{escape(text)}</div><div class="apdm-bar" role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}"><div style="width:{share:.1%}"></div></div>'
    )


def time_text(seconds: float) -> str:
    """Return a time as people say it: "8 seconds", "3 minutes", "2 hours"."""
    for size, unit in ((3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            return count(ceil(seconds / size), unit)
    return count(max(1, ceil(seconds)), "second")


def outcome(figures: Perturbation, messages: Sequence[str]) -> str:
    """Return what was made, and what was measured on the saved files."""
    left = f", {figures.unchanged} left as before" if figures.unchanged else ""
    lines = [
        f"{count(len(figures.photos) - figures.unchanged, 'photo')} protected{left}. The saved files were measured:"
    ]
    psnr = [photo.visible.psnr for photo in figures.photos if photo.visible.psnr is not None]
    if psnr:
        lines[0] += f" PSNR {min(psnr):.1f} dB or more (the higher, the harder to see)."
    if figures.misled and not figures.still_recognised:
        names = ", ".join(encoder.name for encoder in figures.misled)
        lines.append(f"{names} no longer takes the faces for the person's. Other recognisers may.")
    return notes("good", lines) + notes("note", messages)


def compare(token: str, version: int, number: int) -> str:
    """Return one photo before and after, with a slider between them and one that enlarges both."""
    before, after = (f"/p/{token}/{which}/{number}?v={version}" for which in ("before", "after"))
    move = "this.closest('.apdm-compare').style.setProperty"
    return f"""
<div class="apdm-compare"><div class="apdm-window"><div class="apdm-both">
<img class="before" src="{before}" alt="the photo before"><img class="after" src="{after}" alt="the photo after">
<span class="line"></span></div></div>
<label><span>before</span><input type="range" min="0" max="100" value="50" aria-label="between before and after"
 oninput="{move}('--at', 100 - this.value + '%')"><span>after</span></label>
<label><span>enlarge</span><input type="range" min="1" max="12" step="0.5" value="1" aria-label="enlarge"
 oninput="{move}('--zoom', this.value); nextElementSibling.textContent = value + ' x'"><span>1 x</span></label>
</div>"""


def downloads(token: str, version: int, names: Sequence[str]) -> str:
    """Return links to the protected files, and to all of them in one."""
    rows = "".join(
        f'<li><a href="/p/{token}/file/{i}?v={version}" download="{escape(name)}">{escape(name)}</a></li>'
        for i, name in enumerate(names)
    )
    whole = (
        f'<a class="apdm-zip" href="/p/{token}/zip?v={version}" download="protected-photos.zip">Download all (zip)</a>'
    )
    return f'{whole}<ul class="apdm-files">{rows}</ul>'


def frame(address: str) -> str:
    """Return a frame that shows a report. What runs in it cannot reach this page."""
    return (
        f'<iframe class="apdm-report" sandbox="allow-scripts" src="{address}" title="report"></iframe>'
        f'<a class="apdm-files" href="{address}" target="_blank" rel="noopener">Open it in a tab of its own</a>'
    )
