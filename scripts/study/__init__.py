"""A study: several methods trained with the same seeds, what their runs say of them, as tables and figures."""
