"""The arithmetic of SVDQuant layers: torch and triton only; knows no checkpoint, module or host."""
