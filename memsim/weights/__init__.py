"""Weights on disk: INT4 quantisation, packs, importers, adapters."""
