"""What a network is trained on: three-slice slabs, crops, their augmentation, and the feeds.

In: pairs of volumes in HU. Out: batches. Imports no other room but its recipe.
"""
