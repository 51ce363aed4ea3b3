"""What the page says about protection: what it means, and what it does not mean. The same as docs/perturb.md."""

from __future__ import annotations

TITLE = "Protect photos"

SHORT = """
This page changes photos a little before you post them, so that models learn less from them. **It misleads face
recognisers, not eyes**, and it is not a lock: an attacker who has *one* clean photo of the person gets around it.
Photos that are already public stay as they are.
"""

PRIVACY = """
Your photos stay on this machine: in a private folder, until you close this page or the program ends.
"""

LONG = """
**What it does**

* Each photo is changed within the strength that you choose. The change is measured on the saved file.
* *The layer for faces* changes the face, so that the face recogniser that was named takes it for somebody else.
  Adapters that draw a person from one photo, without training, use such recognisers.
* *The method* changes the whole photo, so that an image generator that is trained on it learns something else.

**What it does not do**

* It misleads recognisers, not eyes. Pictures drawn from protected photos still show the person, even if a face
  recogniser sees somebody else.
* It is no lock. One clean photo of the same person undoes it.
* It works only on the files that were protected, against attackers who take these files as they are.
* A recogniser that was not named may not be misled.
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

REPORT = """
The page of an audit: it attacks models or photos, and says what an attacker still gets.
"""
