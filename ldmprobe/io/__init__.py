"""Plain files: records, run directories, atomic writes, digests. Imports nothing of ours but errors."""
