"""Writes workflows/: each workflow is described once, as a graph, and comes out in the two forms that ComfyUI reads."""
