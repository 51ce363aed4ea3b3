"""What was measured: figures with their aims, kept in results.json and in a readable table after every measurement."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apdm.core.files import write_text

RESULTS, TABLE, LOG = "results.json", "table.md", "log.txt"
BEGUN, CUT_OFF = "begun, and not ended", "cut off at the stage's limit"


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        value: what was measured. None if there is nothing to tell it by, as on a CPU.
        unit: its unit.
        aim: what it should be, in words; empty if nothing was aimed at.
        met: whether it is so.
    """

    value: float | None
    unit: str = ""
    aim: str = ""
    met: bool | None = None


Work = Callable[[], Mapping[str, Figure]]


def plain(value: float | None, unit: str = "") -> Figure:
    return Figure(value, unit)


def at_most(value: float | None, bound: float, unit: str = "") -> Figure:
    return Figure(value, unit, f"at most {bound:g}", None if value is None else value <= bound)


def at_least(value: float | None, bound: float, unit: str = "") -> Figure:
    return Figure(value, unit, f"at least {bound:g}", None if value is None else value >= bound)


def near(value: float | None, counted: float, share: float, unit: str = "") -> Figure:
    met = None if value is None else abs(value / counted - 1) <= share
    return Figure(value, unit, f"within {share:.0%} of {counted:.3g}, which was counted", met)


class Record:
    """The results of all stages in a folder. One process at a time writes to it.

    A measurement that is there is not made again, so a run that was cut off can be continued. Only the one that its
    stage's limit cut off is made anew. One that was begun but not ended took its process along and is not tried again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / RESULTS
        self.content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"stages": {}}

    def take_over(self, file: Path, *, anew: Collection[str]) -> None:
        """Take over all figures of an earlier run, which are then not measured again. What failed there is left out.

        Args:
            file: the earlier run's results.json.
            anew: stages to leave out.
        """
        earlier = json.loads(file.read_text())
        self.content["tiny"] = earlier["tiny"]
        for stage, kept in earlier["stages"].items():
            if stage not in anew:
                good = {name: entry for name, entry in kept["measurements"].items() if "error" not in entry}
                taken = {name: {**entry, "earlier": True} for name, entry in good.items()}
                done = kept["done"] and len(good) == len(kept["measurements"])
                self.content["stages"][stage] = {"done": done, "measurements": taken}
        self.write()

    def stage(self, name: str) -> dict[str, Any]:
        fresh: dict[str, Any] = {"done": False, "measurements": {}}
        return self.content["stages"].setdefault(name, fresh)

    def measure(self, stage: str, name: str, work: Work) -> None:
        """Make a measurement, unless it is there, and write it down; an error is written down too."""
        kept = self.stage(stage)["measurements"]
        if name in kept and kept[name].get("error") != CUT_OFF:
            return
        kept[name] = {"error": BEGUN}
        self.write()
        start = time.perf_counter()
        try:
            entry: dict[str, Any] = {"figures": {label: asdict(figure) for label, figure in work().items()}}
        except Exception as error:  # out of memory, or something that this device or this torch has not
            traceback.print_exc()
            entry = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        kept[name] = {**entry, "seconds": round(time.perf_counter() - start, 2)}
        self.write()

    def was_cut_off(self, stage: str, name: str | None = None) -> bool:
        """Whether a measurement was cut off by its stage's limit; without a name: any of the stage."""
        kept = self.content["stages"].get(stage, {"measurements": {}})["measurements"]
        return any(entry.get("error") == CUT_OFF for key, entry in kept.items() if name in (None, key))

    def cut_off(self, stage: str) -> None:
        """Say of the measurement that is under way that its time was over."""
        for entry in self.stage(stage)["measurements"].values():
            if entry.get("error") == BEGUN:
                entry["error"] = CUT_OFF
        self.write()

    def figure(self, stage: str, name: str, label: str) -> float | None:
        """The value of a figure; None if it was not measured."""
        found = self.content["stages"].get(stage, {}).get("measurements", {}).get(name, {}).get("figures", {})
        value = found.get(label, {}).get("value")
        return None if value is None else float(value)

    def write(self) -> None:
        write_text(self.folder / RESULTS, json.dumps(self.content, indent=1) + "\n")
        write_text(self.folder / TABLE, "\n".join(self.table()) + "\n")

    def table(self) -> list[str]:
        """All figures in Markdown."""
        machine = self.content.get("machine", {})
        lines = [f"Measured on {machine.get('name', machine.get('device'))}, torch {machine.get('torch')}.", ""]
        if self.content.get("tiny"):
            lines += ["**Tiny sizes: figures of speed and memory say only that the command runs.**", ""]
        lines += ["| stage | figure | measured | aim | met |", "| --- | --- | --- | --- | --- |"]
        for stage, kept in self.content["stages"].items():
            for name, entry in kept["measurements"].items():
                if "error" in entry:
                    lines.append(f"| {stage} | {name} | {_cell(entry['error'])} | | failed |")
                for label, raw in entry.get("figures", {}).items():
                    figure = Figure(**raw)
                    shown = "not measured" if figure.value is None else f"{figure.value:.4g} {figure.unit}".strip()
                    met = {None: "", True: "yes", False: "**no**"}[figure.met]
                    shown += " (earlier run)" if entry.get("earlier") else ""
                    lines.append(f"| {stage} | {name}: {_cell(label)} | {shown} | {figure.aim} | {met} |")
            if not kept["done"]:
                lines.append(f"| {stage} | | not at its end | | |")
        return lines


def _cell(text: str) -> str:
    return text.replace("|", "/")
