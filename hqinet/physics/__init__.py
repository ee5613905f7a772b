"""Phantoms, projection, reconstruction and the simulation of dose.

In: HU and a dose. Out: HU as a scanner would make them. Imports no other room.
"""
