"""The two-dimensional discrete wavelet transform and its inverse: Haar, and Daubechies of orders 1 to 8."""

# Nothing else is imported here: this package has a module called torch, which would shadow the library's name.
from everyformer.ops.dwt.torch import dwt2d, haar2d, haar_split, idwt2d, ihaar2d

__all__ = ["dwt2d", "haar2d", "haar_split", "idwt2d", "ihaar2d"]
