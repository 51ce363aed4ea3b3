"""What the page says about protection: what it means, and what it does not mean. The same as docs/perturb.md."""

from __future__ import annotations

from apdm.config.groups.subject_kind import SubjectKind

TITLE = "Protect photos"
SUBJECTS: dict[SubjectKind, str] = {"person": "person", "object": "object or animal"}

SHORT = """
This page changes photos a little before you post them, so that models learn less from them. **{effect}**,
and it is not a lock: an attacker who has *one* clean photo of the {subject} gets around it. Photos that are already
public stay as they are.
"""

PRIVACY = """
Your photos stay on this machine: in a private folder, until you close this page or the program ends.
"""

LONG = """
**What it does**

* Each photo is changed within the strength that you choose. The change is measured on the saved file.
{face_layer}\
* *The method* changes the whole photo, so that an image generator that is trained on it learns something else.

**What it does not do**

* {effect}. Pictures drawn from protected photos still show the {subject}{even}.
* It is no lock. One clean photo of the same {subject} undoes it.
* It works only on the files that were protected, against attackers who take these files as they are.
{unnamed}\
* On the miniature world of drawn people, the layer against training did next to nothing, with changes so small that
  nobody sees them. On published diffusion models nothing was measured.

**What to do with it**

* Post the protected file, and never the original.
* Look at the photo before and after, and judge yourself whether the change is too visible for you.
* An audit says whether photos protect: `apdm audit --protected_photos`.
"""

MINIATURE = """
**This is the demonstration.** Without `--pretrained_model_name_or_path` and `--faces`, the page works with the small
bundled model, which knows only drawn people. Photos of real people need a model and a face recogniser of your own:
`apdm app --config configs/dladiff.yaml --faces models/buffalo_l`.
"""

MINIATURE_MODEL = """
**This is the demonstration.** Without `--pretrained_model_name_or_path`, the page works with the small bundled model,
which knows only drawn people. Other photos need a model of your own:
`apdm app --config configs/dladiff.yaml {options}`.
"""
WITHOUT_FACES: dict[SubjectKind, str] = {
    "person": "--image_layer.zero_shot.enabled false",
    "object": '--subject_kind object --instance_prompt "a photo of sks dog" --class_prompt "a photo of dog"',
}

FACE_LAYER = """\
* *The layer for faces* changes the face, so that the face recogniser that was named takes it for somebody else.
  Adapters that draw a person from one photo, without training, use such recognisers.
"""

REPORT = """
The page of an audit: it attacks models or photos, and says what an attacker still gets.
"""


def short(kind: SubjectKind, *, faces: bool) -> str:
    """What stands above the photos. `faces` says whether there is a layer for faces."""
    return SHORT.format(effect=_effect(faces), subject=SUBJECTS[kind])


def long(kind: SubjectKind, *, faces: bool) -> str:
    """What protection means, and what it does not mean."""
    return LONG.format(
        effect=_effect(faces),
        subject=SUBJECTS[kind],
        face_layer=FACE_LAYER if faces else "",
        even=", even if a face\n  recogniser sees somebody else" if faces else "",
        unnamed="* A recogniser that was not named may not be misled.\n" if faces else "",
    )


def miniature(kind: SubjectKind, *, faces: bool) -> str:
    """That the page works with the bundled model, and the command for another one."""
    return MINIATURE if faces else MINIATURE_MODEL.format(options=WITHOUT_FACES[kind])


def _effect(faces: bool) -> str:
    if faces:
        return "It misleads face recognisers, not eyes"
    return "It is made against models that are trained on the photos, not against eyes"
