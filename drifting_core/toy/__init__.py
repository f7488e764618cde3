"""The paper's experiment in the plane: its training and its picture."""
