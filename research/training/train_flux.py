"""Trains the FLUX by flow matching on encoded scenes, with one process for each GPU.

Muon for the matrices of the blocks, AdamW for the rest; the average of the weights is what is written. Late in the
training more of the noise levels are those at which outlines are decided, below the middle.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...demo.captions import Conditioning
from ...demo.install import FLUX
from ...demo.model_files import write_model
from . import processes
from .latents import Latents, encode_scenes, random_latents
from .loop import Loop, say, step_generator, write_results
from .muon import Muon
from .options import Options
from .sampler import GUIDANCE
from .small_flux import Flux, rotary_angles

PICTURES, ENCODE_SECONDS = 110_000, 36.0  # in each process
BATCH = 256  # of all processes together
RATE, WARM_UP, FLAT, DECAY = 1.5e-3, 300, 0.35, 0.02
MUON_GAIN = 4.0  # its rate over that of AdamW
AVERAGE = 0.9995
_RECIPE = "flow matching on filled scenes, velocity MSE; Muon and AdamW 1.5e-3 falling to 0; average of weights 0.9995"
_TITLE = "Demo FLUX: 8.2 M parameters in the layout of FLUX.1, draws captioned scenes of 256 px"


def run(options: Options) -> None:
    """Encode the scenes, train, write the averaged weights."""
    device = processes.start()
    (options.work / "flux.started").write_text("")
    latents = encode_scenes(options, device, options.pictures or PICTURES, ENCODE_SECONDS)
    _train(options, device, latents, is_warm_up=False)
    processes.finish()


def warm_up(options: Options) -> None:
    """Compile what `run` will need on one GPU, and leave it in the compiler's cache on disk."""
    device = processes.start()
    _train(options, device, random_latents(1024, options.side, device), is_warm_up=True)


def draw_times(count: int, progress: float, generator: torch.Generator) -> Tensor:
    """(count,) shares of noise for training, in (0, 1)."""
    device = generator.device
    late = 0.5 * min(1.0, max(0.0, (progress - 0.4) / 0.3))
    normal, choice = (make(count, device=device, generator=generator) for make in (torch.randn, torch.rand))
    even = torch.rand(count, device=device, generator=generator)
    time = torch.sigmoid(torch.where(choice < late, normal - 0.5, 1.2 * normal + 0.4))
    return torch.where(choice > 0.87, even, time).clamp(1e-4, 1)


def flow_loss(model: nn.Module, angles: tuple[Tensor, Tensor]) -> Callable[..., Tensor]:
    """A function of latents, time, conditioning, guidance and noise that returns the mean squared velocity error."""

    def loss(
        latent: Tensor, time: Tensor, noise: Tensor, *, context: Tensor, pooled: Tensor, guidance: Tensor
    ) -> Tensor:
        share = time[:, None, None, None]
        noisy = (1 - share) * latent + share * noise
        with torch.autocast(latent.device.type, torch.bfloat16, enabled=latent.is_cuda):
            velocity = model(noisy, time, context, pooled, guidance, angles=angles)
        return (velocity.float() - (noise - latent)).square().mean()

    return loss


def _train(options: Options, device: torch.device, latents: Latents, *, is_warm_up: bool) -> None:
    torch.manual_seed(options.seed)
    model = Flux().to(device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    weights = list(model.parameters())
    averaged = list(average.parameters())
    matrices = [weight for name, weight in model.named_parameters() if is_block_matrix(name, weight)]
    muon = Muon(matrices, model.img_in.out_features, decay=DECAY)
    chosen = {id(matrix) for matrix in matrices}
    others = [weight for weight in weights if id(weight) not in chosen]
    groups = [
        {"params": [weight for weight in others if weight.ndim > 1], "weight_decay": DECAY},
        {"params": [weight for weight in others if weight.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, RATE, (0.9, 0.98), fused=device.type == "cuda")
    conditioning = Conditioning(device)
    side = options.side // 16
    compute_loss = flow_loss(model, rotary_angles(side, side, latents.words.shape[1], device))
    batch = options.batch or BATCH // max(processes.WORLD, options.processes)
    arguments = _arguments(latents, conditioning, batch, 0.0, step_generator(device, options.seed, -2))
    compute_loss = _compile(compute_loss, arguments) if device.type == "cuda" else compute_loss
    model.zero_grad(set_to_none=True)
    if is_warm_up:
        return

    def write() -> None:
        facts = {"batch": batch * processes.WORLD, "scenes": len(latents) * processes.WORLD, **loop.facts(_RECIPE)}
        write_model(options.output / FLUX, average.state_dict(), _TITLE, **facts)

    loop = Loop(options, device, "flux", {"model": model, "average": average, "muon": muon, "adam": adam}, write)
    for step, progress in loop.steps():
        generator = step_generator(device, options.seed, step)
        rate = RATE * min(1, (step + 1) / WARM_UP) * (min(1, (1 - progress) / (1 - FLAT)) ** 1.2 + 0.001)
        loss = compute_loss(**_arguments(latents, conditioning, batch, progress, generator))
        loss.backward()
        _apply(weights, matrices, muon, adam, rate)
        share = min(AVERAGE, (step + 1) / (step + 20))
        torch._foreach_lerp_(averaged, [weight.data for weight in weights], 1 - share)
        loop.watch(loss)
        if step % 1000 == 999:
            processes.make_equal(weights)
    results = {"steps": loop.step, "seconds": loop.spent, "loss": float(loop.loss), "scenes": len(latents)}
    write_results(options, "flux", results | {"processes": processes.WORLD, "batch": batch * processes.WORLD})


def is_block_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon trains this weight: the matrices of the blocks, but not their modulation."""
    return weight.ndim == 2 and "_blocks." in name and ".lin." not in name


def _apply(weights: list[Tensor], matrices: list[Tensor], muon: Muon, adam: torch.optim.Optimizer, rate: float) -> None:
    """One step of both optimizers from the average gradient, whose norm is clipped to 1."""
    gradients, flat = processes.average([weight.grad for weight in weights])
    flat.mul_((1 / (flat.norm() + 1e-6)).clamp(max=1))
    chosen = {id(matrix) for matrix in matrices}
    of_matrices = []
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = None if id(weight) in chosen else gradient
        if id(weight) in chosen:
            of_matrices.append(gradient)
    for group in adam.param_groups:
        group["lr"] = rate
    adam.step()
    muon.step(of_matrices, MUON_GAIN * rate)
    for weight in weights:
        weight.grad = None


def _arguments(
    latents: Latents, conditioning: Conditioning, batch: int, progress: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """A random batch, as `flow_loss` takes it. Guidance means nothing to this model, so it gets any."""
    device = generator.device
    index = torch.randint(len(latents), (batch,), device=device, generator=generator)
    latent = latents.latent[index].float()
    context, pooled = conditioning(latents.words[index].long())
    any_guidance = 1 + 9 * torch.rand(batch, device=device, generator=generator)
    is_usual = torch.rand(batch, device=device, generator=generator) < 0.5
    noise = torch.randn(latent.shape, device=device, generator=generator)
    time = draw_times(batch, progress, generator)
    guidance = torch.where(is_usual, GUIDANCE, any_guidance)
    conditions = {"context": context, "pooled": pooled, "guidance": guidance}
    return {"latent": latent, "time": time, "noise": noise, **conditions}


def _compile(function: Callable[..., Tensor], arguments: dict[str, Tensor]) -> Callable[..., Tensor]:
    """Compile, and compute once forward and back; where the compiler fails, training goes on without it."""
    compiled = torch.compile(function)
    try:
        compiled(**arguments).backward()
    except Exception as error:  # noqa: BLE001 - the compiler raises whatever it likes; slower is better than nothing
        say(f"Not compiled: {error}")
        return function
    torch.cuda.synchronize()
    say("compiled")
    return compiled
