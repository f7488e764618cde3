"""What others publish, with sizes, hashes and reported numbers, and how it is fetched. Light."""
