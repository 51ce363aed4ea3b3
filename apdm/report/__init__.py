"""From the results of an audit to one HTML page.

`page` puts everything together; `attacks` and `photos` make the sections on attacks and on protected photos; `curves`
and `pictures` prepare what is drawn; `numbers` prints numbers. `report.html.j2` holds the words and the looks.
"""
