"""Classification of images by networks of the EfficientNet-lite family."""
