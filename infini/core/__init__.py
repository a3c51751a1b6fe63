"""L0: the IR, tracing, arrays, pytrees, protocols of backends and comm, configuration, errors and events.

Imports the text form, which installs itself as the printer and the fingerprint of programs, and the search
for NaN, which installs itself where programs run.
"""

from infini.core import finite as finite, text as text
