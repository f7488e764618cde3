"""The method on points in the plane: its training and its report."""
