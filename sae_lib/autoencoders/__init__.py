"""The SAE variants, one family per file, behind one interface (`base.Autoencoder`); `build` makes and loads them.

Nothing is imported here, so that reading a configuration does not load PyTorch.
"""
