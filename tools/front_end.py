"""Another release of ComfyUI's page than the pinned one, for the browser tests.

Standard library only.
"""

from pathlib import Path

from comfyui_source import DEV_FOLDER
from dev_environment import SetupError, run, say

PACKAGE, MODULE = "comfyui-frontend-package", "comfyui_frontend_package"


def front_end_folder(python: Path, chosen: str, parent: Path = DEV_FOLDER / "front_ends") -> Path:
    """The folder of a page: index.html and what belongs to it.

    Args:
        python: with pip. chosen: a release of comfyui-frontend-package, as "1.58.1", or a folder with a page.

    Raises:
        SetupError: there is no page in the folder, or no such release.
    """
    named = Path(chosen)
    if named.is_dir():
        found = next((place for place in (named, named / "static", named / MODULE / "static") if _is_page(place)), None)
        if found is None:
            raise SetupError(f"--front-end {chosen}: no index.html in it; give the folder that holds the page.")
        return found.resolve()
    folder = parent / chosen
    page = folder / MODULE / "static"
    if not _is_page(page):
        say(f"installing {PACKAGE} {chosen} into {folder}")
        command = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--upgrade")
        if run(*command, "--target", folder, f"{PACKAGE}=={chosen}").returncode or not _is_page(page):
            raise SetupError(f"--front-end {chosen}: neither a folder nor a release of {PACKAGE} that pip finds.")
    return page


def _is_page(folder: Path) -> bool:
    return (folder / "index.html").is_file()
