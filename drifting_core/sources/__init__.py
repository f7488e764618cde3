"""What others publish: weights, archives, sizes, hashes, reported numbers; and how it is fetched."""
