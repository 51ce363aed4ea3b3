"""Importing this module asks the other libraries to report errors only, unless the user wants to see everything.

It is imported before the libraries, by every package that uses them.
"""

from apdm.core.libraries import quiet_libraries

quiet_libraries()
