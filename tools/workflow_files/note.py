"""The note that every workflow opens with: which files, where from, which folder, which card."""

from .graph import ModelFile, Workflow

CARD = (
    "**Which card?** RTX 50 (Blackwell): take the `svdq-fp4_…` file of the same page instead. Every other card, and "
    "the CPU: `svdq-int4_…`. Not sure: queue the workflow *environment-check*; it also says what to repair."
)


def read_me_first(workflow: Workflow) -> str:
    """Markdown for the note."""
    parts = [f"# Read me first: {workflow.title}", workflow.summary]
    if workflow.files:
        rows = ["| file | goes to `models/` | from |", "|---|---|---|", *(_row(file) for file in workflow.files)]
        parts += ["## Files", "\n".join(rows)]
        if any(file.name.startswith("svdq-int4") and file.page for file in workflow.files):
            parts.append(CARD)
        parts.append(
            "Files that you have under other names: choose them in the loaders. After adding files press **R**."
        )
    if workflow.note:
        parts.append(workflow.note)
    return "\n\n".join(parts) + "\n"


def _row(file: ModelFile) -> str:
    size = f", {file.gib:g} GB" if file.gib is not None else ""
    where = f"[{file.page.removeprefix('https://huggingface.co/')}]({file.page})" if file.page else "made by yourself"
    return f"| `{file.name}`{size} | `{file.folder}` | {where} |"
