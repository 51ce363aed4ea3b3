"""Writes the results of an audit as one HTML page.

`page` puts everything together; `attacks` and `photos` make the sections on attacks and on protected photos; `curves`,
`costs`, `scales`, `strips` and `pictures` prepare what is drawn; `numbers` formats numbers. `report.html.j2` holds the
texts and the layout, `style.css.j2` the styles, `figures.html.j2` the drawings.
`attack_page` is about attacks on one model alone, `comparison` puts several audits side by side.
"""

import sys

from apdm.core.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage  # `apdm.report` is also a function of the Python API
