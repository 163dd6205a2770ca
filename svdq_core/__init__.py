"""What SVDQuant is, in torch; works from a script without ComfyUI."""
