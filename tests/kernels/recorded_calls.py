"""A function called as quantized layers are: by its recording if there is one."""

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

from svdquant_pack.kernels.launching.replay import replay


def replayed(situation: Hashable, sources: Sequence[Tensor | None], compute: Callable[[], Tensor]) -> Tensor:
    """compute(), or what it did by address if it was recorded in this situation."""
    done = replay(situation, sources)
    if isinstance(done, Tensor):
        return done
    with done as call:
        call.result = compute()
    return call.result
