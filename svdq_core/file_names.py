"""Names that users type for files to be: what Linux, Windows and macOS take alike, so that workflows work anywhere."""

from .errors import SVDQuantError

LONGEST_PART = 150  # bytes of a folder's or file's name; endings, and what a writer adds meanwhile, come on top
LONGEST = 1000  # letters of all of it
FORBIDDEN = '<>:"|?*\\'
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    "conin$",
    "conout$",
    *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"),
}
_SHOWN = 80


def check_name(name: str, folder: str) -> str:
    """A file's name without ending, with "/" between subfolders, as it can be used; spaces around it are dropped.

    Args:
        folder: that it is to be in, for the message.

    Raises:
        SVDQuantError: some system cannot have a file of that name; the message says why.
    """
    stripped = name.strip()
    for part in stripped.split("/"):
        why = "it is too long" if len(stripped) > LONGEST else _fault(part)
        if why:
            shown = f"{name[:_SHOWN]!r}" + ("..." if len(name) > _SHOWN else "")
            shown = shown.encode("utf-8", "backslashreplace").decode()
            raise SVDQuantError(
                f"{shown} is no file name inside {folder}: {why}. Use letters, digits, '-', and '/' for subfolders."
            )
    return stripped


def _fault(part: str) -> str:
    """What is wrong with the name of one folder or file; "" for nothing."""
    if part in ("", ".", ".."):
        return "a part of it is empty" if not part else f"{part!r} leads elsewhere"
    odd = next((letter for letter in part if letter in FORBIDDEN or not (letter.isprintable() or letter == " ")), "")
    if odd:
        return f"{odd!a} cannot be in a name" + (" on Windows" if odd in FORBIDDEN else "")
    if part[-1] in ". " or part[0] == " ":
        return f"{part[-20:]!r} begins or ends with a space or a dot"
    if part.split(".")[0].rstrip().lower() in _DEVICES:
        return f"{part[:20]!r} is a device on Windows"
    if len(part.encode()) > LONGEST_PART:
        return f"a part of it has {len(part.encode())} bytes, more than {LONGEST_PART}"
    return ""
