"""The page: a daily feed on which papers run. ``everyformer serve`` starts it."""
