"""Programs: what is launched, swept, drawn and measured."""

import os
import signal
import sys

# A closed stream's number would go to the next file that is opened, and be written to, or moved, as a stream.
for _stream in range(3):
    try:
        os.fstat(_stream)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the smallest number that is free

# An interrupt while a program of ours (no notebook, no test) still imports modules ends it in silence: a
# handler of Python's would run inside of whatever is imported, which may swallow it. `command_line.run` takes
# over.
if sys.argv[:1] == ["-m"] or os.path.basename((sys.argv or [""])[0]).startswith("dlf-"):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
