"""The science: network, training, metrics, simulation. Knows torch and numpy, no file formats."""
