"""The claim bundle of a run: words, tables, figures, checks, and the exported model."""
