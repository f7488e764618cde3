"""Runs read and compared: from Python, and in a table."""
