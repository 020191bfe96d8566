"""What the papers say, put to the test: the audit, the figures, the atlas and the survey."""
