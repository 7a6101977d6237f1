"""A discrete-event model of gateways and scorers, the times it is fed with, and a real run."""
