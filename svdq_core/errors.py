"""What can go wrong, as the user reads it: what, in which file and layer, expected and found, what to do."""


class SVDQuantError(Exception):
    """Base of every error that this pack raises on purpose.

    Half of a pair of surrogates, which names of files and texts from outside may hold, is spelled out: the host prints
    what a node raises, and a text that cannot be encoded would end the thread that runs all prompts.
    """

    def __init__(self, *args: object):
        super().__init__(*(_encodable(a) if isinstance(a, str) else a for a in args))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class CheckpointError(SVDQuantError):
    """A file cannot be read as the SVDQuant checkpoint it should be."""


class ArchitectureError(SVDQuantError):
    """A model is of a kind, or has sizes, that SVDQuant cannot hold here."""


class LoraError(SVDQuantError):
    """A LoRA does not fit the model it is applied to."""


# The host shows a class with its module, which for a node pack is the path of its folder.
for _error in (SVDQuantError, CheckpointError, ArchitectureError, LoraError):
    _error.__module__ = "svdquant"
