"""The load generator, with closed and open loops."""
