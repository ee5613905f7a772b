"""From a recipe and pairs of volumes to the best network by validation.

In: recipe, pairs, a folder for checkpoints. Out: weights and a history. May import `networks`,
`samples` and `restoration`.
"""
