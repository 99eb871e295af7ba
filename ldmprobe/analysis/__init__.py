"""Statistics of sample sets. Torch only; knows no model."""
