"""Refining measured on the demo's FLUX: quantized layers trained block by block or as a whole, on training captions."""
