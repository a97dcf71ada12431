"""The figures that Stateroom holds itself to, measured in one run: `python -m benchmarks`. No part of the product."""
