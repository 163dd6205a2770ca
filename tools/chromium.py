"""The Chromium of the system, which the browser tests drive; nothing is installed here.

Standard library only.
"""

import os
import shutil
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
OTHER_PLACES = (  # where installers put it beside the search path
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
HINT = "a Chromium (Debian, Ubuntu: apt install chromium; or name an executable in CHROMIUM)"


def find_chromium() -> str | None:
    """The executable that CHROMIUM names, else one of the system; None where there is none."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    return found or next((place for place in OTHER_PLACES if Path(place).is_file()), None)
