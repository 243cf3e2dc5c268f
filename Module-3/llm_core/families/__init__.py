"""The families beside GPT: encoders, encoder and decoder, and what they are trained on."""
