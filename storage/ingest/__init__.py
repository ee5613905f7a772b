"""From a delivery to the rows of the next commit.

In: a folder of DICOM and its cohort rules. Out: an inventory, a plan of pairs and refusals,
converted volumes, and a merge with what stands: `take_inventory`, `plan`, `convert`, `merge`, each
given what the one before returned. May import `stores`, `dicom` and `dataset`.
"""
