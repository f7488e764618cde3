"""From a generator to numbers: samples, reference statistics, distances, selection and the memorisation audit."""
