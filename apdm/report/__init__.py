"""Writes results as HTML pages, each one self-contained file.

A page is one function: it brings results into the order of the page, and `template.write_page` fills a template of this
folder. To add a figure to the report of an audit, make its coordinates here in a file of its own, as `costs` does, hand
them over in `audit_page`, and draw them in `figures.html.j2` and `report.html.j2`.

Pages, each with its template:

audit_page       the audit of models: report.html.j2
photo_page       the audit of photos alone: photo_report.html.j2, which fills the blocks of report.html.j2
attack_page      attacks on one model: attack.html.j2, likeness.svg.j2
comparison       several audits side by side: comparison.html.j2
table_page       a table of a paper, measured again: table.html.j2
progress_page    a run that is still at work: progress.html.j2

Sections of the audit's page:

attacks          all attacks, and the curves and pictures of each
photos           protected photos, and what attacks draw from them: photos.html.j2
searches         an attacker's search, and what a model knows before any attack

Drawings and pictures, as coordinates and data for figures.html.j2 and panel.html.j2:

axes             size, places and ticks of drawings
curves           likeness over attack steps
costs            cost against utility
pictures         which pictures are shown, and their encoding
strips           the same pictures while an attack runs

What all of them use:

common           verdict, checks and judges, which several pages tell alike
numbers          numbers as text
template         writes a page from a template; style.css.j2 and script.js.j2 are in all of them
"""

import sys

from apdm.core.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage  # `apdm.report` is also a function of the Python API
