"""Embeddings of text by encoders of the BERT family."""
