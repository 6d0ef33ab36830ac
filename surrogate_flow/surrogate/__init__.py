"""The surrogate: network, normalisation, loss, prediction."""
