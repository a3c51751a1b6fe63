"""L0: the IR, tracing, arrays, pytrees, protocols of backends and comm, configuration, errors and events.

Imports the text form, which installs itself as the printer and the fingerprint of programs.
"""

from infini.core import text as text
