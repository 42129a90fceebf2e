"""Experiments on the running system: how even, how fast, how quickly mended; measured, never made up."""
