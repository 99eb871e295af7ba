"""Images from any Hugging Face dataset, and small built-in data that needs no network."""
