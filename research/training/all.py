"""Trains and measures all of the demo's models: python research/training/all.py --output FOLDER --seconds 585.

    autoencoder | reader, and the compiler's warm-up      side by side on two GPUs, in turn on one
    FLUX                                                  on all GPUs
    LoRA        | evaluation                              side by side on two GPUs, in turn on one

Every stage is a process of its own and ends at a time that is fixed beforehand, so that the whole ends in time. What a
stage made lies in the folder as soon as it exists; a stage that failed is said so, and the next ones use the models
that the project ships. Run again with the same folder, finished stages end at once and others go on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

STAGE = Path(__file__).resolve().with_name("stage.py")
# Ends of the stages, as shares of the whole time: a run of 585 s has 102, 504 and 560 s.
AUTOENCODER_END, FLUX_END, LORA_END = 0.175, 0.862, 0.957
WARM_UP_SHARE = 0.6  # of the autoencoder's time, for the reader beside it
MEETING_SECONDS = 70  # processes of one training that have not met by then are started again as one
GRACE_SECONDS = 12  # after its end a stage still writes; then it is stopped
LAST_GRACE_SECONDS = 8  # the evaluation, with which the run ends
_HOST, _PORT = "127.0.0.1", "29511"


@dataclass(frozen=True)
class Training:
    """One run of the whole training.

    Args:
        begin: time.time() when it began.
        seconds: that it may take.
        gpus: 0 on a CPU.
        extra: options for every stage, from the command line.
    """

    output: Path
    work: Path
    begin: float
    seconds: float
    gpus: int
    extra: tuple[str, ...]

    def end(self, share: float) -> float:
        """Unix time at a share of the run."""
        return self.begin + share * self.seconds

    def say(self, text: str) -> None:
        """Print a line with the time since the run began."""
        print(f"[run {time.time() - self.begin:6.1f} s] {text}", flush=True)


class Stage:
    """One process of stage.py, or several that torchrun starts."""

    def __init__(self, run: Training, name: str, end: float, gpu: int = 0, processes: int = 1) -> None:
        self._run, self.name, self._end = run, name, end
        seconds = max(1.0, end - time.time())
        command = [sys.executable]
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)]
            command += ["--master-addr", _HOST, "--master-port", _PORT]
            for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
                environment.setdefault(variable, "lo")  # they all run on this machine
        elif run.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(min(gpu, run.gpus - 1))
        command += [str(STAGE), name, "--output", str(run.output), "--work", str(run.work)]
        command += ["--seconds", f"{seconds:.1f}", "--deadline", f"{end:.1f}"]
        command += ["--processes", str(max(1, run.gpus)), *run.extra]
        self._process = subprocess.Popen(command, env=environment)
        run.say(f"{name} started on {processes} process(es), {seconds:.0f} s")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, grace: float | None = None) -> bool:
        """Wait until its end and `grace` seconds longer, then stop it; return whether it ended well."""
        grace = GRACE_SECONDS if grace is None else grace
        try:
            code = self._process.wait(max(1.0, self._end + grace - time.time()))
        except subprocess.TimeoutExpired:
            self.stop()
            self._run.say(f"{self.name} was still running {grace:.0f} s after its end and was stopped")
            gather(self._run)
            return False
        self._run.say(f"{self.name} ended with code {code}")
        gather(self._run)
        return code == 0

    def stop(self) -> None:
        """End it and, through torchrun, what it started."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def train(run: Training) -> bool:
    """Run all stages; return whether all ended well."""
    return all([prepare(run), train_flux(run), finish(run)])


def prepare(run: Training) -> bool:
    """Autoencoder and reader."""
    end = run.end(AUTOENCODER_END)
    if run.gpus < 2:
        middle = run.begin + (end - run.begin) * 0.75
        return all([Stage(run, "train_autoencoder", middle).wait(), Stage(run, "train_reader", end).wait()])
    autoencoder = Stage(run, "train_autoencoder", end, gpu=0)
    reader = Stage(run, "train_reader", run.end(AUTOENCODER_END * WARM_UP_SHARE), gpu=1)
    warm_up = Stage(run, "warm_up", end, gpu=1)
    return all([reader.wait(), warm_up.wait(), autoencoder.wait()])


def train_flux(run: Training) -> bool:
    """FLUX, on all GPUs; on one where they do not find each other."""
    end = run.end(FLUX_END)
    if run.gpus < 2:
        return Stage(run, "train_flux", end).wait()
    marker = run.work / "flux.started"
    marker.unlink(missing_ok=True)
    stage = Stage(run, "train_flux", end, processes=run.gpus)
    give_up = min(time.time() + MEETING_SECONDS, end)
    while stage.is_running and not marker.exists() and time.time() < give_up:
        time.sleep(0.5)
    if marker.exists():
        if stage.wait():
            return True
    else:
        stage.stop()
    if end - time.time() < 40:
        return False
    run.say("train_flux goes on in one process")
    return Stage(run, "train_flux", end).wait()


def finish(run: Training) -> bool:
    """LoRA and evaluation."""
    if run.gpus < 2:
        lora = Stage(run, "train_lora", run.end(LORA_END)).wait()
        return lora and Stage(run, "evaluate", run.end(1) - GRACE_SECONDS).wait(LAST_GRACE_SECONDS)
    evaluation = Stage(run, "evaluate", run.end(1) - GRACE_SECONDS, gpu=1)
    lora = Stage(run, "train_lora", run.end(LORA_END), gpu=0)
    return all(
        [
            lora.wait(run.end(1) - run.end(LORA_END) - GRACE_SECONDS + LAST_GRACE_SECONDS),
            evaluation.wait(LAST_GRACE_SECONDS),
        ]
    )


def gather(run: Training) -> None:
    """Put the figures of all stages so far into one file."""
    found = sorted((run.work / "results").glob("*.json"))
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}
    part = run.output / f"results.json.{os.getpid()}.part"
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(run.output / "results.json")


def count_gpus() -> int:
    """GPUs of this machine that torch can use; asked in another process, so that this one holds none."""
    ask = "import torch; print(torch.cuda.device_count())"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return int(answer.stdout)


def main() -> int:
    """Read the command line and train; return 0 when all went well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the models and figures")
    parser.add_argument("--work", type=Path, help="folder of checkpoints (default: OUTPUT/work)")
    parser.add_argument("--seconds", type=float, default=585.0, help="for everything, start to end")
    parser.add_argument("--gpus", type=int, help="how many to use (default: all); 0 is the CPU")
    options, extra = parser.parse_known_args()
    begin = time.time()
    work = options.work or options.output / "work"
    gpus = count_gpus() if options.gpus is None else options.gpus
    run = Training(options.output.resolve(), work.resolve(), begin, options.seconds, gpus, tuple(extra))
    (run.work / "results").mkdir(parents=True, exist_ok=True)
    run.output.mkdir(parents=True, exist_ok=True)
    is_good = train(run)
    gather(run)
    run.say("all stages ended well" if is_good else "a stage FAILED; see above")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
