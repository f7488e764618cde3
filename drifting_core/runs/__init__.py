"""Runs read and compared, from Python and on one screen."""
