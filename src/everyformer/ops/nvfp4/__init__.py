"""NVFP4: four-bit values in blocks of sixteen under an eight-bit scale, and one float32 scale for the tensor."""

# Nothing else is imported here: this package has a module called torch, which would shadow the library's name.
from everyformer.ops.nvfp4.dispatch import BACKENDS, dequantise, quantise
from everyformer.ops.nvfp4.format import BLOCK, GRID, Quantised, pack, unpack, values

__all__ = ["BACKENDS", "BLOCK", "GRID", "Quantised", "dequantise", "pack", "quantise", "unpack", "values"]
