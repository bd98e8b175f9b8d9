"""Stability: does an SAE find the same features again?

Both papers promise stable features in their titles and measure absorption instead. Here stability is measured across
`seeds` and, by `score`, across contexts and tokens, each beside the number that chance gives.
"""
