"""``python -m everyformer``, also what torchrun starts."""

from everyformer.cli import main

main()
