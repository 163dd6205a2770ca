"""Dry runs: meta tensors count as a GPU's, nothing is launched, and nothing is given up for what fails in one."""

import pytest
import torch

pytest.importorskip("triton")

from svdquant_pack.kernels import gpus
from svdquant_pack.kernels.ladder import descend, steps_left_behind
from svdquant_pack.kernels.launching import launch as launching
from svdquant_pack.kernels.launching.dry_run import dry_run, launches_noted
from svdquant_pack.kernels.stand_in import meant, meta_stands_for

HERE = torch.device("cuda", 1)
META = torch.device("meta")
ROWS = {row.name: row for row in gpus.GENERATIONS}


class Kernel:
    """Fails where it is launched."""

    arg_names = ("x_ptr", "M", "N", "BLOCK")
    do_not_specialize = ("M",)


KERNEL = Kernel()


def launch(M: int, N: int = 64, block: int = 64) -> None:
    launching.launch(KERNEL, (1,), (torch.empty(M, N, device=META), M, N), {"BLOCK": block})


def test_meta_tensors_count_as_tensors_of_the_gpu_they_stand_for():
    assert gpus.generation(META) is gpus.OTHER
    with meta_stands_for(ROWS["sm_90"], 132, HERE):
        assert gpus.generation(META) is ROWS["sm_90"] and gpus.takes_ptx(META) and gpus.processors(META) == 132
        assert meant(META) == HERE and meant(torch.device("cpu")) == torch.device("cpu")
        with meta_stands_for(ROWS["gfx1201"], 64, HERE):
            assert gpus.generation(META) is ROWS["gfx1201"] and not gpus.takes_ptx(META)
        assert gpus.generation(META) is ROWS["sm_90"]
    assert gpus.generation(META) is gpus.OTHER


def test_launches_are_noted_once_for_each_compiled_kernel_in_their_order():
    with launches_noted(ROWS["sm_90"], 132, HERE) as found:
        launch(64)
        launch(80, block=32)
        launch(4608)  # M is not compiled for
        launch(64, N=63)
    assert [(w.arguments[1:], w.constants["BLOCK"]) for w in found.values()] == [
        ((64, 64), 64),
        ((80, 64), 32),
        ((64, 63), 64),
    ]
    assert all(w.kernel is KERNEL for w in found.values())
    assert dry_run.found is None


def test_keys_are_those_of_the_gpus_own_tensors():
    with launches_noted(ROWS["sm_90"], 132, HERE) as found:
        launch(64)
    (key,) = found
    x = torch.empty(64, 64)
    assert launching.launch_key(KERNEL, (x, 64, 64), {"BLOCK": 64}) == tuple(x.device if k == HERE else k for k in key)
    assert HERE in key


def test_a_failure_in_a_dry_run_gives_up_no_path():
    def fail():
        raise NotImplementedError("no meta tensors")

    before = steps_left_behind()
    with launches_noted(ROWS["sm_90"], 132, HERE), pytest.raises(NotImplementedError):
        descend(META, [("the best", fail), ("the next", lambda: None)])
    assert steps_left_behind() == before and dry_run.found is None
