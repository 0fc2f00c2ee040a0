"""Everything a claim needs to run: data, training, measuring, reporting. The lab knows no paper."""
