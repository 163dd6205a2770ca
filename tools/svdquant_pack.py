"""The pack under a name that Python can import, whatever its folder is called: `import svdquant_pack.svdq_core`.

A module with a `__path__` is a package; whoever has this folder on sys.path needs nothing else.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
__path__ = [str(ROOT)]
