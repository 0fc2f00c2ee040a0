"""The attentions that the inverted family swaps (arXiv 2310.06625, section 4.2)."""

from everyformer.parts.series_attention import flow_attention, full_attention, prob_attention

__all__ = ["flow_attention", "full_attention", "prob_attention"]
