"""The gate above the layer: recipes for quantizing, compared on whole pictures, with what other seeds would change."""
