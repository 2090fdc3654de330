"""Programs: what is launched, swept, drawn and measured."""

import os
import signal
import sys

# An interrupt while a program of ours (no notebook, no test) still imports modules ends it in silence: a
# handler of Python's would run inside of whatever is imported, which may swallow it. `command_line.run` takes
# over.
if sys.argv[:1] == ["-m"] or os.path.basename((sys.argv or [""])[0]).startswith("dlf-"):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
