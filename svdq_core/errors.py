"""What can go wrong, as the user reads it: what, in which file and layer, expected and found, what to do."""


class SVDQuantError(Exception):
    """Base of every error that this pack raises on purpose."""


class CheckpointError(SVDQuantError):
    """A file cannot be read as the SVDQuant checkpoint it should be."""


class ArchitectureError(SVDQuantError):
    """A model is of a kind, or has sizes, that SVDQuant cannot hold here."""


class LoraError(SVDQuantError):
    """A LoRA does not fit the model it is applied to."""


# The host shows a class with its module, which for a node pack is the path of its folder.
for _error in (SVDQuantError, CheckpointError, ArchitectureError, LoraError):
    _error.__module__ = "svdquant"
