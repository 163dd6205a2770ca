"""The gate's table: everything that was tried, losers included, by number format."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluate.record import to_tensor
from ..evaluate.tables import markdown
from .comparison import change, spread
from .gate_run import FORMS
from .recipes import CLAIMS, PAPER_ROWS, RECIPES

_OTHERS = """\
"Ours" is what the pack writes and runs. "Simulated" are other programs' steps as written down in
`research/baselines.py`, `research/evaluate/other_programs.py` and `research/gate/sensitivity.py`, not the programs;
modulation layers are ours in all rows. Of the paper's other comparisons, Q-Diffusion and QuEST are for SD 1.4 and
train: Q-Diffusion learns the rounding of every weight block after block (AdaRound, thousands of steps each) on latents
of all time steps, QuEST finetunes the layers of time and attention and the step sizes of activations; either would
need its training written anew for this network. QLLM and AffineQuant learn transforms of the inputs (channels split
and merged; a dense matrix for each layer) that a runtime must apply: not tried."""
HEAD = (
    "recipe",
    "origin",
    "latent error, %",
    "hard set, %",
    "sd of replicates",
    "median layer error, %",
    "against",
    "change, %",
    "sd of replicates",
    "verdict",
)
_TEXT = """\
{captions} captions that training never saw and {hard} hard ones, {steps} steps, {replicates} replicates of each recipe:
other seeds of quantization and other recordings of {calibration} training captions. {machine}.

Latent error: norm of the difference of the last latents from the unquantized model's over norm of those. After ±
stands half a 95 % interval: for errors over captions, for changes over captions (bootstrap, paired) and replicates
(Student's t, paired) together. A change is of the mean over all captions, in per cent of the other recipe's error. A
verdict other than "no clear difference" means that the interval does not hold 0. Every comparison stands alone: of
twenty without any effect, one gets a verdict. The layer error is measured on tokens of the evaluated captions."""

Errors = dict[str, dict[str, dict[int, dict[str, Any]]]]  # form -> recipe -> replicate -> what was found


def gate_report(settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of what was measured; recipes without every replicate get those that are there.

    Args:
        settings: of the command. runs: one entry for each recipe, format and replicate.
    """
    found: Errors = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        found[run["form"]][run["recipe"]][run["replicate"]] = dict(run)
    sections = ["# The gate", _TEXT.format(**settings)]
    for form in FORMS:
        if form in found:
            sections += [f"## {FORMS[form].label}", form_table(found[form], int(settings["captions"]))]
    if rows := paper_table(found, int(settings["captions"])):
        sections += ["## The paper's comparisons", _OTHERS, rows]
    if claims := claims_table(found):
        sections += ["## What the presets beat", "Change of the latent error, verdict.", claims]
    return "\n\n".join(sections) + "\n"


def form_table(found: Mapping[str, Mapping[int, Mapping[str, Any]]], usual: int) -> str:
    """Rows of one format, the least error first.

    Args:
        found: recipe -> replicate -> what was measured. usual: captions before the hard ones.
    """
    rows = []
    for name, replicates in found.items():
        errors = _errors(replicates, sorted(replicates))
        layer = torch.tensor([entry["layer_error"] for entry in replicates.values()]).mean()
        recipe = RECIPES[name]
        row = [f"{recipe.title} (`{name}`)", recipe.origin, *_figures(errors, usual), f"{100 * float(layer):.1f}"]
        rows.append((float(errors.mean()), row + _compared(name, found)))
    return markdown(HEAD, [row for _, row in sorted(rows)])


def paper_table(found: Errors, usual: int) -> str:
    """Precision, method, quality: what is ours and what is simulated."""
    rows = []
    for form, names in PAPER_ROWS.items():
        for name in (n for n in names if n in found.get(form, {})):
            replicates, recipe = found[form][name], RECIPES[name]
            figures = _figures(_errors(replicates, sorted(replicates)), usual)
            rows.append([FORMS[form].label, recipe.title, recipe.origin, *figures])
    return markdown(["precision", "method", "whose", *HEAD[2:5]], rows)


def claims_table(found: Errors) -> str:
    """The change of the latent error against what others do, for each number format."""
    rows = []
    for name, other in CLAIMS:
        cells = [_claim(found[form], name, other) if form in found else "-" for form in FORMS]
        if any(cell != "-" for cell in cells):
            rows.append([f"`{name}`", f"{RECIPES[other].title} (`{other}`)", *cells])
    return markdown(["recipe", "against", *(f"{form.label}, %" for form in FORMS.values())], rows)


def _claim(found: Mapping[str, Mapping[int, Mapping[str, Any]]], name: str, other: str) -> str:
    common = sorted(found.get(name, {}).keys() & found.get(other, {}).keys())
    if not common:
        return "-"
    changed = change(_errors(found[name], common), _errors(found[other], common))
    half = "" if len(common) < 2 else f" ± {100 * changed.half_width:.1f}"
    return f"{100 * changed.mean:+.1f}{half} ({changed.verdict})"


def _errors(replicates: Mapping[int, Mapping[str, Any]], numbers: Sequence[int]) -> Tensor:
    return torch.stack([to_tensor(replicates[number]["error"]) for number in numbers])


def _figures(errors: Tensor, usual: int) -> list[str]:
    cells = []
    for part in (errors[:, :usual], errors[:, usual:]):
        cells.append(f"{100 * spread(part).mean:.2f} ± {100 * spread(part).captions:.2f}" if part.shape[1] else "-")
    return [*cells, f"{100 * spread(errors).deviation:.2f}"]


def _compared(name: str, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    other = RECIPES[name].against
    common = sorted(found[name].keys() & found.get(other, {}).keys())
    if other == name or not common:
        return ["-"] * 4
    changed = change(_errors(found[name], common), _errors(found[other], common))
    half = "" if len(common) < 2 else f" ± {100 * changed.half_width:.1f}"
    return [f"`{other}`", f"{100 * changed.mean:+.1f}{half}", f"{100 * changed.deviation:.1f}", changed.verdict]
