"""What makes a trained model smaller or faster, in place, for models of this library, transformers and timm alike.

:mod:`everyformer.compressors` lists them, applies them by name and composes them.
"""
