"""Sparse autoencoders: which features fire in a scorer, and whether its margins need them.

Here a feature is a latent of a sparse autoencoder, and never what an evaluation groups rows by.
"""
