"""Look inside an SAE: every latent, and absorption as it happens, in a notebook or as one offline HTML file.

    python -m sae_lib browser --profile pocket --method topk --seed 42
    python -m sae_lib browser FOLDER --model pocket --layer 2

In a notebook, `examine` computes everything once; `show_latent` and `show_absorption` show parts of it, and
`write_browser` writes all of it as a page.

- `firing`: where latents fire in a text, and the contexts that show it.
- `directions`: effects on the logits, neighbours, counterparts in other seeds.
- `letters`: first letters, word by word.
- `examination`: all of it together.
- `views`, `page`: as the output of a cell, as a page.
"""

from sae_lib.share.browser.examination import Examination, examine
from sae_lib.share.browser.page import write_browser
from sae_lib.share.browser.views import show_absorption, show_latent

__all__ = ["Examination", "examine", "show_absorption", "show_latent", "write_browser"]
