"""Networks: modules from three slices to the restored middle one, built from a recipe.

In: windows in normalised intensity. Out: restored slices. Imports no other room but its recipe.
"""
