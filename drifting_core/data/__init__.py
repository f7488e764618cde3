"""From archives or folders to latents in HDF5, and every random number."""
