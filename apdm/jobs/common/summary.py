"""What a finished job tells: at most fifteen lines for a person, or one JSON object for a script.

Every command that takes `--json` ends with it. Each fills in what it has.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apdm.audit.results.common import Verdict
from apdm.audit.results.models import CurvePoint, Results
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.photos import ImageLayer, PhotoResults
from apdm.audit.results.rows import by_spec, protected_curve
from apdm.core.plain_bar import duration
from apdm.core.terminal import columns, count
from apdm.export.layout import ATTACK, PERTURBATION, PICTURES, REPORT, RESULTS
from apdm.image_layer.results import Perturbation
from apdm.jobs.common.results import AttackResult, AuditResult, HardenResult, PerturbResult, PushResult, VerifyResult
from apdm.report.attack_page import curve_table, title_of

LINES = 15  # a summary has at most
POINTS = 3  # steps of the attack at which likeness is told
WIDTH = 100  # of a sentence
PHOTO_ATTACKS = 2  # attacks on photos that are told
FILES = 8  # of a dry push that are listed
LAST = 4  # lines at the end that are always told: where things are, and what to do next


@dataclass
class Summary:
    """What there is to tell.

    Attributes:
        rows: {what it is about: one line or several}.
        facts: the same for programs; JSON values.
        verdict: one sentence that says how it ended.
    """

    rows: dict[str, str | list[str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""

    def lines(self) -> list[str]:
        """The lines for a person; the verdict if there are no rows. Of more than LINES, some in between go."""
        lines = columns(self.rows) or [self.verdict]
        if len(lines) <= LINES:
            return lines
        first = LINES - LAST - 1
        left_out = count(len(lines) - first - LAST, "more line")
        return [*lines[:first], f"... ({left_out}: see the report)", *lines[-LAST:]]


def of_hardening(result: HardenResult, *, next_step: str | list[str] | None = None) -> Summary:
    """The summary of a hardening run. `next_step` is what to try next; by default `apdm verify`."""
    told = Summary(verdict=f"hardened model in {result.model_dir}")
    told.rows["hardened model"] = f"{result.model_dir} ({', '.join(_price(result))})"
    told.facts |= {"output_dir": str(result.output_dir), "model": str(result.model_dir), "steps": result.steps}
    told.facts |= {"seconds": result.seconds, "peak_memory_bytes": result.peak_memory_bytes}
    if result.moved is not None:
        told.facts["changed"] = result.moved
        if result.results is None:  # the audit says more about it
            told.rows["changed"] = f"{result.moved:.1%} of the denoiser's weights"
    if result.image_dir is not None:
        layer = None if result.results is None else result.results.image_layer
        _add_photos(told, result.image_dir, layer)
    if result.results is not None:
        _add_model_audit(told, result.results)
        _add_verdict(told, result.results.verdict, model_sentence(result.results))
        _add_report(told, result.output_dir)
        told.facts["results"] = str(result.output_dir / RESULTS)
    if result.pushed is not None:
        told.rows["pushed to"] = told.facts["pushed"] = result.pushed
    told.rows["try next"] = next_step or _verify(result.output_dir)
    return told


def of_push(result: PushResult) -> Summary:
    """The summary of a push to the Hub."""
    told = Summary()
    told.facts |= {"output_dir": str(result.output_dir), "repository": result.repository, "files": [*result.files]}
    told.facts["pushed"] = result.address
    if result.address is None:
        told.verdict = f"dry run: {count(len(result.files), 'file')} would be pushed to {result.repository}"
        more = [f"... and {count(len(result.files) - FILES, 'more file')}"] * (len(result.files) > FILES)
        told.rows["would be pushed"] = [*result.files[:FILES], *more]
    else:
        told.verdict = f"pushed to {result.address}"
        told.rows["pushed"] = f"{count(len(result.files), 'file')} of {result.output_dir}"
    told.rows["to" if result.address else "repository"] = result.address or result.repository
    return told


@dataclass
class Verification:
    """What `apdm verify` found. Unlike a summary, it tells every problem, however many there are, also with `--quiet`.

    Attributes:
        problems: one sentence for each problem.
        outcome: how it ended, and what to try next.
        facts: the same for programs.
        verdict: the problems, and one line about how it ended.
    """

    problems: Sequence[str]
    outcome: Sequence[str]
    facts: dict[str, Any]
    verdict: str

    def lines(self) -> list[str]:
        """All lines for a person."""
        return [*self.problems, *self.outcome]


def of_verification(result: VerifyResult, *, with_subjects: bool) -> Verification:
    """What to tell of a folder that was checked. `with_subjects` says whether photos of subjects were looked for."""
    checked = ["all files as shipped", *["the model loads"] * result.with_model]
    checked += ["nothing of a subject in it"] if with_subjects else ["no prompt of the run in it"] * result.with_model
    outcome = ", ".join(checked) if result.ok else count(len(result.problems), "problem")
    sought = f"looked for {result.ids} ids, {result.photos} photos and the prompts in {result.files} files"
    lines = [sought, f"{result.output_dir}: {outcome}"]
    if not with_subjects:
        advice = f"{_verify(result.output_dir)} --subjects FOLDER, to look for people's photos and ids too"
        lines += columns({"try next": advice})
    facts = {"output_dir": str(result.output_dir), "ok": result.ok, "problems": [*result.problems]}
    facts |= {"files": result.files, "ids": result.ids, "photos": result.photos}
    return Verification(result.problems, lines, facts, "\n".join([*result.problems, lines[1]]))


def of_perturbation(result: PerturbResult) -> Summary:
    """The summary of protected photos."""
    told = Summary(verdict=f"protected photos in {result.image_dir}")
    told.facts["output_dir"] = str(result.output_dir)
    figures = result.figures
    _add_photos(told, result.image_dir, figures)
    if figures is not None:
        without = {one.subject: len(one.without) for one in figures.people if one.without}
        if without:
            told.rows["without a face"] = ", ".join(f"{number} of {subject}" for subject, number in without.items())
        unclear = [one.subject for one in figures.people if one.unclear]
        if unclear:
            told.rows["unclear faces"] = f"photos of {', '.join(unclear)}; {PERTURBATION} names them"
        told.facts |= {"without_a_face": without, "unclear_faces": unclear}
        told.rows["figures"] = told.facts["figures"] = str(result.output_dir / PERTURBATION)
        if misled := figures.misled:
            names, still, all_faces = [one.name for one in misled], figures.still_recognised, figures.with_faces
            found = ", ".join(f"{name} in {all_faces - still.get(name, 0)}" for name in names)
            where = f"of {count(all_faces, 'photo')} with a face"
            told.rows["misled"] = f"{found} {where}; judge the photos by another, unrelated encoder too"
            told.facts |= {"misled": names, "still_recognised": still}
    told.rows["try next"] = _verify(result.output_dir)
    return told


def of_audit(result: AuditResult) -> Summary:
    """The summary of an audit of models or of photos."""
    told = Summary()
    told.facts["output_dir"] = str(result.output_dir)
    sentence = reasons_sentence(result.verdict)
    if isinstance(result.results, PhotoResults):
        _add_photo_attacks(told, result.results.image_layer, result.results.encoders)
    elif result.results is not None:
        _add_model_audit(told, result.results)
        sentence = model_sentence(result.results)
    _add_verdict(told, result.verdict, sentence)
    _add_report(told, result.output_dir)
    told.rows["figures"] = told.facts["results"] = str(result.output_dir / RESULTS)
    return told


def of_attack(result: AttackResult, results: AttackResults) -> Summary:
    """The summary of attacks on one model: the curve of a single attack, or where several of them led.

    Args:
        result: where everything is.
    """
    told = Summary()
    several = len(results.attacks) > 1
    for row in results.attacks:
        if row.error is not None:
            told.rows[title_of(row)] = f"failed: {row.error}"
        elif several:
            before, after = _likeness_at(row.curve[0]), _likeness_at(row.curve[-1])
            told.rows[title_of(row)] = f"likeness {before} before, {after} after {count(row.curve[-1].step, 'step')}"
        else:
            told.rows[title_of(row)] = curve_table(row, results.encoders)
    if results.strangers is not None:
        chance = " / ".join(f"{one.mean:z.2f}" for one in results.strangers.values())
        told.rows["strangers"] = f"likeness {chance}, by chance ({' / '.join(results.strangers)})"
    told.facts |= {"output_dir": str(result.output_dir), "figures": str(result.output_dir / ATTACK)}
    told.facts["attacks"] = [
        {
            "attack": row.spec,
            "subject": row.subject,
            "seed": row.seed,
            "error": row.error,
            "likeness": {
                encoder: [[point.step, point.identity[encoder].mean] for point in row.curve]
                for encoder in results.encoders
            },
        }
        for row in results.attacks
    ]
    _add_report(told, result.output_dir)
    told.rows["pictures"] = told.facts["pictures"] = str(result.output_dir / PICTURES)
    if result.models_dir is not None:
        told.rows["attacked models"] = f"{result.models_dir}; they draw the person, so keep them to yourself"
        told.facts["models"] = str(result.models_dir)
    told.verdict = "; ".join(result.failed) or f"attacked; the page is {result.output_dir / REPORT}"
    return told


def _likeness_at(point: CurvePoint) -> str:
    return " / ".join(f"{one.mean:z.2f}" for one in point.identity.values())


# -- sentences -------------------------------------------------------------------------------------------------------


def model_sentence(results: Results) -> str:
    """The verdict on a hardened model in one sentence, in terms of what the attacker has to do."""
    verdict, cost = results.verdict, results.cost_factor.worst
    failed = [check.name for check in verdict.checks if check.passed is False]
    if verdict.protected or "cost_factor" not in failed or cost is None:
        return reasons_sentence(verdict)
    who = "subject" if results.judges.face_score is None else "person"
    still = f"fine-tuning still learns the {who}" if "match_rate" in failed else "the delay is too small"
    price = f"{cost} as many steps as the base for the same likeness"
    asked = f"{results.thresholds.min_cost_factor:.1f} times are asked for"
    doubt = f"; the audit is also unreliable on {count(len(verdict.unreliable), 'point')}" * bool(verdict.unreliable)
    return f"{still}; the hardened model takes {price}, and {asked}{doubt}"


def reasons_sentence(verdict: Verdict) -> str:
    """A verdict in one sentence, from its own reasons. A check that could not be measured is no failed one."""
    if verdict.protected:
        return "every required attack works without the protection, and none of them works against it"
    failed = [check.detail for check in verdict.checks if check.passed is False and check.value is not None]
    first = (verdict.unreliable or verdict.reasons)[0].rstrip(".")
    if not failed:
        return f"nothing is claimed, because the audit is unreliable: {first}"
    more = f" ({count(len(failed) - 1, 'more check')} failed)" if len(failed) > 1 else ""
    doubt = f"; the audit is also unreliable: {first}" if verdict.unreliable else ""
    return failed[0].rstrip(".") + more + doubt


def _verify(output: Path) -> str:
    """The command that checks an output folder, as a shell takes it."""
    return f"apdm verify {shlex.quote(str(output))}"


# -- parts -----------------------------------------------------------------------------------------------------------


def _price(result: HardenResult) -> list[str]:
    """What the hardening took, as far as it is known: outer steps, time and memory."""
    took = "" if result.seconds is None else f" in {duration(result.seconds)}"
    memory = [] if result.peak_memory_bytes is None else [f"at most {result.peak_memory_bytes / 1e9:.1f} GB of memory"]
    return [count(result.steps, "outer step") + took, *memory]


def _add_verdict(told: Summary, verdict: Verdict, sentence: str) -> None:
    word = "protected" if verdict.protected else "not protected"
    told.verdict = f"{word}: {sentence}"
    told.rows["verdict"] = textwrap.wrap(
        told.verdict, WIDTH, break_long_words=False, break_on_hyphens=False, max_lines=3, placeholder=" ..."
    )
    told.facts |= {"protected": verdict.protected, "verdict": told.verdict, "reasons": list(verdict.reasons)}


def _add_report(told: Summary, output: Path) -> None:
    told.rows["open"] = told.facts["report"] = str(output / REPORT)


def _add_photos(told: Summary, folder: Path, figures: Perturbation | None) -> None:
    text, told.facts["images"] = str(folder), str(folder)
    if figures is not None and figures.photos:
        worst = figures.most_visible.visible.psnr
        left = f", {figures.unchanged} of them unchanged" if figures.unchanged else ""
        text += f" ({count(len(figures.photos), 'photo')}{left})"
        if worst is not None:
            text += f", PSNR at least {worst:.1f} dB"
        told.facts |= {"photos": len(figures.photos), "unchanged": figures.unchanged, "lowest_psnr": worst}
    told.rows["protected photos"] = text


def _add_model_audit(told: Summary, results: Results) -> None:
    worst, facts = results.cost_factor.worst, told.facts
    facts["likeness"] = _likeness(results)
    encoder = worst.encoder if worst is not None else results.encoders[0]
    curves = facts["likeness"]["by_encoder"][encoder]
    if steps := _points(curves, results.cost_factor.nominal_step):
        at = " / ".join(f"{step}" for step in steps)
        chance = results.strangers[encoder].mean
        rows = [f"after {at} steps of {results.cost_factor.spec} ({encoder}; strangers have {chance:z.2f}):"]
        for model in ("base", "hardened"):
            values = dict(curves[model])
            rows.append(f"{' / '.join(f'{values[step]:z.2f}' for step in steps)}  {model} model")
        told.rows["likeness"] = rows
    facts["cost_factor"] = None if worst is None else worst.factor
    if worst is not None:
        told.rows["attacker's cost"] = f"{worst} the steps; {results.thresholds.min_cost_factor:.1f} are asked for"
    _add_utility(told, results)
    if results.image_layer is not None:
        _add_photo_attacks(told, results.image_layer, results.encoders)


def _likeness(results: Results) -> dict[str, Any]:
    """The mean likeness to the protected people over the steps of the attack that the verdict shows, by encoder."""
    spec = results.cost_factor.spec
    rows = by_spec(results.attacks)[spec]
    by_encoder = {
        encoder: {
            model: [[int(step), value] for step, value in protected_curve(rows, model, encoder)]
            for model in ("base", "hardened")
        }
        for encoder in results.encoders
    }
    return {"attack": spec, "by_encoder": by_encoder}


def _points(curves: dict[str, list[list[float]]], nominal: int) -> list[int]:
    """The steps to tell, measured on both models: the nominal one, and the first and the middle one before it."""
    steps = sorted({step for step, _ in curves["base"]} & {step for step, _ in curves["hardened"]})
    before = [int(step) for step in steps if 0 < step <= nominal]
    if len(before) <= POINTS:
        return before
    return [before[0], before[(len(before) - 1) // 2], before[-1]]


def _add_utility(told: Summary, results: Results) -> None:
    faces = results.utility.class_face_rate or {}
    parts: list[str] = []
    if "hardened" in faces and "base" in faces:
        parts.append(f"{faces['hardened']:.0%} of the class pictures show a face (base: {faces['base']:.0%})")
    others = results.utility.others_ratio
    if others is not None:
        parts.append(f"other people reach {others:.2f} of their likeness on the base")
    if parts:
        told.rows["utility"] = parts
    told.facts["utility"] = {"class_face_rate": faces or None, "others": others}


def _add_photo_attacks(told: Summary, layer: ImageLayer, encoders: Sequence[str]) -> None:
    found = {}
    for outcome in layer.by_attack or []:
        if outcome.comparison:
            found[outcome.spec] = {
                name: {"clean": outcome.comparison[name].clean, "protected": outcome.comparison[name].protected}
                for name in encoders
            }
    told.facts["photo_attacks"] = found
    misled = set(layer.misled_judges or ())
    judge = [name for name in encoders if name not in misled] or list(encoders)
    last = judge[-1]
    about = f"{last}, which they target" if last in misled else last
    void = {one.spec for one in layer.by_attack or [] if one.state == "void"}
    lines = []
    for spec, one in list(found.items())[:PHOTO_ATTACKS]:
        clean, protected = (f"{one[last][photos]:z.2f}" for photos in ("clean", "protected"))
        lines += [f"{spec}: likeness {clean} from clean photos, {protected} from protected ones ({about})"]
        lines += ["which says nothing: the attack is too weak with clean photos"] * (spec in void)
    if lines:
        told.rows["from photos"] = lines
