"""Quality of quantized models, measured on the demo's FLUX: the same captions and noise through every method."""
