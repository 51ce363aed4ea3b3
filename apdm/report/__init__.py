"""Writes the results of an audit as one HTML page.

`page` puts everything together; `attacks` and `photos` make the sections on attacks and on protected photos; `curves`
and `pictures` prepare what is drawn; `numbers` formats numbers. `report.html.j2` holds the texts and the layout.
"""
