"""The SAE of `notebooks/foreign_sae` as SAELens reads it, and as we do."""

import pytest

pytest.importorskip("sae_lens", reason="the oracles' environment is not this one: make test-oracles")

import torch
from sae_lens import SAE

from sae_lib.data.language_model import LanguageModel
from sae_lib.share.load import load_sae
from tests.oracles.make_foreign_sae import FOLDER, K


def test_latents_and_reconstruction_are_those_of_saelens(pocket: LanguageModel) -> None:
    tokens = torch.randint(300, pocket.vocab_size, (4, 20), generator=torch.Generator().manual_seed(0))
    x = pocket.residual_stream(tokens).flatten(0, 1)
    theirs, ours = SAE.load_from_disk(FOLDER), load_sae(FOLDER)
    with torch.no_grad():
        f, peer = ours.encode(x), theirs.encode(x)
        x_hat, peer_x_hat = ours.decode(f), theirs.decode(peer)
    assert (f != 0).sum(dim=1).tolist() == [K] * len(x)
    torch.testing.assert_close(f, peer, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x_hat, peer_x_hat, rtol=1e-5, atol=1e-4)
