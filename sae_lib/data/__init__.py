"""What SAEs are trained on: text, tokens, the language model, its activations."""
