"""Denoisers, codecs, conditioning: what is trained and probed."""
