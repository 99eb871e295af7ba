"""Records on disk, figures, the report page, loggers."""
