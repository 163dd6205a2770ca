"""Runs a host's main.py, and ends when whoever started this process is gone: python comfyui_launch.py MAIN [arguments].

The starter holds the other end of standard input. However it ends, killed included, the pipe closes, and so no server
is left behind.
"""

import os
import runpy
import sys
import threading
from pathlib import Path


def _end_with_the_starter() -> None:
    # nobody writes, so this returns at the end of the pipe; not sys.stdin, whose lock the interpreter's end needs
    os.read(0, 1)
    os._exit(0)


if __name__ == "__main__":
    main = Path(sys.argv[1]).resolve()
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    sys.argv = [str(main), *sys.argv[2:]]
    sys.path[0] = str(main.parent)  # as `python main.py` has it
    runpy.run_path(str(main), run_name="__main__")
