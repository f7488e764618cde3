"""The method: the drift field, the objective, guidance and the sample bank."""
