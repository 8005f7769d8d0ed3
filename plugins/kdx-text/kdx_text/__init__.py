"""Text for kdx: Hugging Face transformers and tokenised data sets."""
